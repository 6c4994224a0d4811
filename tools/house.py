"""Draws docs/house.svg: the packages as floors of a house, with their rooms (`python -m tools.docs` writes it).

What always holds: a floor imports what is drawn below it; the rooms of a floor are in the order of `.importlinter`; and
every folder of modules is drawn, else `draw` refuses.
"""

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
_WIDTH, _COLUMNS, _ROOM, _GAP = 960, 4, (172, 46), 10


class Floor(NamedTuple):
    """A package: what it is, in lines; its rooms (names, words), from the top; colours of its inside and its lines."""

    package: str
    words: tuple[str, ...]
    rooms: tuple[tuple[str, str], ...]
    inside: str
    line: str


FLOORS = (
    Floor(
        "lab",
        ("measures; imports all,", "not in the wheel"),
        (
            ("bench", "speed and memory"),
            ("service", "the running product"),
            ("paper", "the tables of the paper"),
            ("faults", "kill, fill, slow down"),
            ("loop, parity", "learning; released code"),
        ),
        "#f4f4f4",
        "#999",
    ),
    Floor(
        "backend",
        ("Label Studio’s side;", "imports training in jobs", "alone"),
        (
            ("commands, demo", "the console; a demo"),
            ("doctor", "names what is wrong"),
            ("web", "answers /setup, /predict"),
            ("loop", "corrections to a version"),
            ("worker", "owns the model"),
            ("effort", "what people changed"),
            ("instant", "a project's instant head"),
            ("registry", "versions, champions"),
            ("queue", "state of every task"),
            ("studio", "the client of Label Studio"),
        ),
        "#eef3fb",
        "#5b7db1",
    ),
    Floor(
        "training",
        ("from data sets to weights",),
        (
            ("commands", "train, learn, evaluate, ..."),
            ("instant", "reads corrected photos"),
            ("engine", "trainer, losses"),
            ("evaluation", "scores, the gate"),
            ("examples", "questions and batches"),
            ("recipe", "values, checked"),
            ("data", "readers of data sets"),
        ),
        "#fdf4e7",
        "#c08a3e",
    ),
    Floor(
        "lasagna",
        ("the model, and photos", "without Label Studio;", "imports nothing of ours"),
        (
            ("commands", "annotate, ask, models"),
            ("annotate", "many photos to files"),
            ("doors", "other tools' ways"),
            ("models", "other makers' models"),
            ("assistant", "Lasagna, what users call"),
            ("instant", "learns at each correction"),
            ("contract", "what a model must do"),
            ("checkpoint", "folders, the hub, convert"),
            ("network", "the layers, decoding"),
            ("prompt", "names to tokens"),
            ("formats", "masks to COCO, YOLO, ..."),
            ("labels", "configuration to class list"),
            ("masks", "the core type, no torch"),
        ),
        "#eef8ee",
        "#5c9a5c",
    ),
)


def draw() -> str:
    """The picture as SVG. Raises ValueError where the rooms are not the folders of the packages."""
    shapes, top = [], 10
    for floor in FLOORS:
        _compare(floor)
        top = _draw_floor(floor, top, shapes)
    size = f'viewBox="0 0 {_WIDTH} {top}"'
    font = 'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"'
    ground = f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>'
    title = "<title>The packages and their rooms</title>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', title, ground, *shapes, "</svg>\n"])


def _compare(floor: Floor) -> None:
    folders = {path.name for path in (ROOT / floor.package).iterdir() if any(path.glob("*.py"))}
    drawn = {room.strip() for names, _ in floor.rooms for room in names.split(",")}
    if folders != drawn:
        raise ValueError(f"FLOORS of tools/house.py and the folders of {floor.package} differ: {folders ^ drawn}")


def _draw_floor(floor: Floor, top: int, shapes: list[str]) -> int:
    """Adds the shapes of a floor; returns where the next one begins."""
    width, height = _ROOM
    rows = -(-len(floor.rooms) // _COLUMNS)
    inside = max(22 + rows * (height + _GAP), 88)
    shapes.append(_box(10, top, _WIDTH - 20, inside, floor.inside, floor.line))
    shapes.append(_text(28, top + 34, floor.package, 20, bold=True))
    shapes += [_text(28, top + 56 + 18 * number, line, 13, "#444") for number, line in enumerate(floor.words)]
    for number, (names, words) in enumerate(floor.rooms):
        row, column = divmod(number, _COLUMNS)
        left, y = 210 + column * (width + _GAP), top + 12 + row * (height + _GAP)
        shapes.append(_box(left, y, width, height, "#ffffff", floor.line))
        shapes.append(_text(left + 10, y + 19, names, 14, bold=True))
        shapes.append(_text(left + 10, y + 37, words, 12, "#555"))
    return top + inside + 12


def _box(x: int, y: int, width: int, height: int, fill: str, line: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{line}"/>'


def _text(x: int, y: int, words: str, size: int, fill: str = "#222", *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{weight}>{escape(words)}</text>'
