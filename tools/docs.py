"""Writes those parts of the documents that repeat the code: settings, commands, what the doctor can name, the house.

    python -m tools.docs            writes them
    python -m tools.docs --check    writes nothing, shows what would change, and exits with 1 if anything would

What always holds: a generated part stands between `<!-- NAME -->` and `<!-- /NAME -->` and is replaced as a whole; what
stands outside the marks is written by hand and left alone. `make check` runs `--check`, so a document cannot lag.
"""

import argparse
import difflib
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click

from backend.doctor.troubles import TROUBLES
from lasagna.commands.cli import main as lasagna
from lasagna.settings import Settings, allowed, variable
from tools import house

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS = CHECKOUT / "docs"
LABORATORY = ("bench", "experiment")
"""Groups of commands that measure; they are in docs/lab/commands.md."""

_SETTINGS = {
    "Model": ("model", "device", "dtype", "quantise", "encoder", "batch_size", "loaded_versions"),
    "Label Studio": ("label_studio_url", "label_studio_token", "delivery_timeout"),
    "Redis and folders": ("redis_url", "state_dir", "cache", "registry", "data"),
    "Web process": (
        *(
            "host",
            "port",
            "basic_auth",
            "webhook_secret",
            "without_password",
            "allowed_hosts",
            "predict_deadline",
        ),
        *("max_request_bytes", "max_request_tasks", "max_labels"),
    ),
    "Images": ("image_hosts", "image_timeout", "max_image_bytes", "max_image_pixels", "max_image_memory"),
    "What is asked and left out": (
        "guess_unknown",
        *("min_area", "min_width", "duplicate_iou", "max_regions", "max_region_bytes"),
    ),
    "Training on corrections": (
        "instant",
        "train_when",
        "train_recipe",
        "train_changes",
        "train_gpu_share",
        "replay_data",
    ),
    "Logs": ("log_level", "log_format"),
}

_WIDTH = 110
"""Columns of a paragraph."""

_CHECKS = {
    "redis": "Redis",
    "worker": "Worker",
    "label-studio": "Address of Label Studio",
    "clock": "Clocks",
    "token": "Token",
    "project": "Project",
    "labels": "Labelling configuration",
    "backend": "Connection",
    "host-name": "Host name",
    "webhook": "Webhook",
    "image": "Image",
    "prediction": "Prediction",
    "shown": "What annotators see",
    "up-to-date": "Outdated predictions",
}


def settings() -> str:
    """A table per group of settings. Raises ValueError where a setting is in no group or in two."""
    grouped = [name for names in _SETTINGS.values() for name in names]
    if sorted(grouped) != sorted(Settings.model_fields):
        raise ValueError(f"put these settings into a group: {sorted(set(grouped) ^ set(Settings.model_fields))}")
    return "\n\n".join(f"### {title}\n\n{_settings_table(names)}" for title, names in _SETTINGS.items())


def _settings_table(names: Iterable[str]) -> str:
    rows = []
    for name in names:
        field = Settings.model_fields[name]
        default = {True: "yes", False: "no"}[field.default] if isinstance(field.default, bool) else field.default
        words = allowed(field)
        rows.append(
            (
                f"`{variable(name)}`",
                f"`{default}`" if default != "" else "",
                _cell(str(field.description)),
                "" if words == allowed(Settings.model_fields["model"]) else _cell(words),  # any text
            )
        )
    return _table(("variable", "default", "meaning", "allowed"), rows)


def product_commands() -> str:
    """The reference of every command but the laboratory's."""
    return _reference(name for name in lasagna.list_commands(_context()) if name not in LABORATORY)


def laboratory_commands() -> str:
    """The reference of the commands that measure."""
    return _reference(LABORATORY)


def doctor() -> str:
    """A section per check of `lasagna doctor`, with a table of what it can find."""
    sections = []
    for check in dict.fromkeys(trouble.check for trouble in TROUBLES.values()):
        rows = [
            [_cell(text.replace("!r}", "}")) for text in (trouble.set_up, trouble.message, trouble.fix)]
            for trouble in TROUBLES.values()
            if trouble.check == check
        ]
        sections.append(f"### {_CHECKS[check]} (`{check}`)\n\n{_table(('set-up', 'message', 'fix'), rows)}")
    return "\n\n".join(sections)


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("configuration.md", "settings"): settings,
    ("commands.md", "commands"): product_commands,
    ("lab/commands.md", "commands"): laboratory_commands,
    ("doctor.md", "troubles"): doctor,
}
"""By document below docs/ and name of the block: what makes its text."""


def updated(document: str) -> str:
    """The text of a document with all its generated blocks made anew. Raises ValueError where a mark is missing."""
    text = (DOCS / document).read_text(encoding="utf-8")
    for (name, block), make in BLOCKS.items():
        if name != document:
            continue
        begin, end = f"<!-- {block} -->", f"<!-- /{block} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"docs/{document} needs {begin} and {end}, once each, in this order")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the documents.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything would change")
    check = parser.parse_args(arguments).check
    if missing := _not_installed():
        raise SystemExit(f"{', '.join(missing)}: not installed as pyproject.toml says; type `make setup` and try again")
    lag = False
    made = {document: updated(document) for document in dict.fromkeys(name for name, _ in BLOCKS)}
    for document, new in {**made, "house.svg": house.draw()}.items():
        if "which is not installed here)" in new:  # what a command that cannot be loaded says of itself
            raise SystemExit(f"docs/{document}: a command cannot be loaded; type `make setup` and try again")
        path = DOCS / document
        old = path.read_text(encoding="utf-8")
        if old == new:
            continue
        lag = True
        if check:
            sys.stdout.writelines(difflib.unified_diff(_lines(old), _lines(new), f"docs/{document}", "the code"))
        else:
            path.write_text(new, encoding="utf-8")
            print(f"written: docs/{document}")
    if check and lag:
        print("The documents lag behind the code; run: python -m tools.docs")
    return int(check and lag)


def _not_installed() -> list[str]:
    """Entry points that are in the files and not in this environment, or the other way round."""
    found: set[tuple[str, str, str]] = set()
    for file in ("pyproject.toml", "lab/pyproject.toml"):
        given = tomllib.loads((CHECKOUT / file).read_text(encoding="utf-8"))["project"]["entry-points"]
        found |= {(group, name, value) for group, points in given.items() for name, value in points.items()}
    groups = {group for group, _, _ in found}
    here = {(group, point.name, point.value) for group in groups for point in entry_points(group=group)}
    return sorted({name for _, name, _ in found ^ here})


def _context() -> click.Context:
    return click.Context(lasagna, info_name="lasagna")


def _walk(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _walk(below, click.Context(below, info_name=name, parent=context))


def _reference(names: Iterable[str]) -> str:
    sections = []
    for name in names:
        command = lasagna.get_command(_context(), name)
        if command is None:
            raise ValueError(f"there is no command {name}")
        for below, context in _walk(command, click.Context(command, info_name=name, parent=_context())):
            sections.append(_section(below, context))
    return "\n\n".join(sections)


def _section(command: click.Command, context: click.Context) -> str:
    depth = context.command_path.count(" ")
    usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    parts = [f"{'#' * (depth + 1)} {context.command_path}", *_paragraphs(command.help or ""), f"```text\n{usage}\n```"]
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    rows = [(_code(names), _cell(words)) for names, words in records if words and "--help" not in names]
    if rows:
        parts.append(_table(("option", "meaning"), rows))
    if command.epilog:
        parts.append(_epilog(command.epilog))
    return "\n\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a help text; `\\b`, after which click keeps lines as they are, makes a paragraph code."""
    kept = [paragraph.strip("\n") for paragraph in re.split(r"\n\s*\n", text.strip())]
    return [
        f"```text\n{part.removeprefix(chr(8)).strip(chr(10))}\n```"
        if part.startswith("\b")
        else textwrap.fill(_cell(part), _WIDTH, break_long_words=False, break_on_hyphens=False)
        for part in kept
    ]


def _epilog(text: str) -> str:
    """An epilog as it is printed, without the marks that keep click from wrapping it."""
    lines = [line.rstrip() for line in text.replace("\b\n", "").replace("\b", "").strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines).strip("\n") + "\n```"


def _cell(text: str) -> str:
    """Text for a cell of a table or a paragraph: of Markdown's marks it may hold code in backticks alone."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = {"|": "&#124;", "*": "&#42;", "<": "&lt;"}
    return "".join(
        piece if piece.startswith("`") else re.sub("[|*<]", lambda match: plain[match[0]], piece) for piece in pieces
    )


def _code(text: str) -> str:
    """Code in a cell of a table; a | would end the cell, in some dialects of Markdown even between backticks."""
    return f"`{text}`" if "|" not in text else f"<code>{_cell(text)}</code>"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headings = tuple(headings)
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    sys.exit(main())
