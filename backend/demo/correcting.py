"""`lasagna demo --correct`: photos corrected one by one in a real Label Studio, and the next prediction improving.

The photos are twelve pieces of one photo of coins that comes with scikit-image; the shipped model has never been taught
"coin". The annotator is simulated: it submits the true masks, found by the watershed of the photo's edges (as
scikit-image's own guide segments it). Everything else is what production does: the task is opened, Label Studio asks
the backend, the annotation is submitted, its webhook queues the job, the worker learns, and the next task is opened.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from backend.studio.version_names import without_question
from lasagna.errors import ServiceError
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.conversions import brush_rle_to_mask
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation
from lasagna.progress import progress_bar

if TYPE_CHECKING:
    from backend.demo.parts import Demo

LABEL = "coin"
CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="{LABEL}" background="#1f7a8c"/></BrushLabels>
</View>"""
[_IMAGE] = parse_label_config(CONFIG).images
_ROWS, _COLUMNS = 3, 4
_LEARNT_WITHIN = 60.0
_PAPER, _INK, _SOFT, _ADDED, _WRONG = "#ffffff", "#1d1d1f", "#6e6e73", (31, 122, 140), (208, 60, 48)


@dataclass(frozen=True)
class CoinPiece:
    """A photo with its truth.

    Attributes:
        path: The file.
        truth: bool (H, W).
    """

    path: Path
    truth: Mask


@dataclass(frozen=True)
class Step:
    """One photo on its way.

    Attributes:
        name: Of the file.
        task: In Label Studio.
        version: That predicted it.
        predicted: bool (H, W), what the annotator saw.
        to_change: Share of the photo's pixels that the annotator had to change.
        learnt: Seconds from the submitted annotation to the new head; None where none came.
    """

    name: str
    task: int
    version: str
    predicted: Mask
    to_change: float
    learnt: float | None


def coin_photo() -> tuple[NDArray[np.uint8], Mask]:
    """The photo, uint8 (H, W), and where its coins are, bool (H, W)."""
    from scipy import ndimage
    from skimage import data, filters, segmentation

    photo = data.coins()
    markers = np.zeros_like(photo, dtype=np.int32)
    markers[photo < 30], markers[photo > 150] = 1, 2
    coins = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(photo), markers) == 2)
    parts, _ = ndimage.label(coins)
    return photo, (np.bincount(parts.ravel())[parts] > 300) & (parts > 0)  # specks are none


def coin_pieces(folder: Path) -> list[CoinPiece]:
    """Writes the pieces as PNG into a folder, in an order that mixes the photo's bright and dark parts."""
    photo, coins = coin_photo()
    folder.mkdir(parents=True, exist_ok=True)
    height, width = photo.shape
    pieces = []
    for place in np.random.default_rng(1).permutation(_ROWS * _COLUMNS):
        row, column = divmod(int(place), _COLUMNS)
        part = np.s_[
            row * height // _ROWS : (row + 1) * height // _ROWS,
            column * width // _COLUMNS : (column + 1) * width // _COLUMNS,
        ]
        pieces.append(cut_coins(photo, coins, part, folder / f"coins-{place + 1:02}.png"))
    return pieces


def cut_coins(photo: NDArray[np.uint8], coins: Mask, part: tuple[slice, slice], path: Path) -> CoinPiece:
    """Writes a part of the photo to a file."""
    Image.fromarray(photo[part]).convert("RGB").save(path)
    return CoinPiece(path, coins[part])


def correct_one_by_one(parts: "Demo", project: int, pieces: Sequence[CoinPiece], timeout: float) -> list[Step]:
    """Opens, corrects and submits every task.

    Raises:
        ServiceError: A task got no prediction within `timeout` seconds.
    """
    steps = []
    with progress_bar(parts.console, "Correcting", len(pieces)) as advance:
        for piece, task in zip(pieces, parts.tasks, strict=True):
            prediction = _opened(parts, project, task, timeout)
            predicted = _mask(prediction["result"], piece.truth.shape)
            before = without_question(prediction["model_version"])
            parts.api.create_annotation(
                task, drawn_regions(piece.truth, task), lead_time=5.0, prediction=int(prediction["id"])
            )
            learnt = seconds_until_learnt(parts, project, before)
            to_change = float((predicted != piece.truth).mean())
            steps.append(Step(piece.path.name, task, before, predicted, to_change, learnt))
            advance()
    return steps


def _opened(parts: "Demo", project: int, task: int, timeout: float) -> dict[str, Any]:
    """The newest prediction of a task that is opened."""
    deadline = time.monotonic() + timeout
    parts.api.open_task(project, task)
    while time.monotonic() < deadline:
        if found := parts.api.predictions(task):
            return max(found, key=lambda prediction: int(prediction["id"]))
        parts.check()
        time.sleep(0.2)
    raise ServiceError(f"task {task} got no prediction within {timeout:g} s; see {parts.folder}/worker.log")


def seconds_until_learnt(parts: "Demo", project: int, before: str) -> float | None:
    """Seconds until a head newer than a version serves; None where it takes longer than `_LEARNT_WITHIN`."""
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < _LEARNT_WITHIN:
        if parts.serving(project) != before:
            return seconds
        parts.check()
        time.sleep(0.05)
    return None


def drawn_regions(truth: Mask, task: int) -> list[dict[str, Any]]:
    """The coins' mask as an annotator's region."""
    answer = Segmentation((truth.shape[0], truth.shape[1]), (ClassAnswer(LABEL, 1.0, truth if truth.any() else None),))
    found = segmentation_to_label_studio(answer, _IMAGE, f"correct-{task}", "person")["result"]
    return [{**{key: value for key, value in region.items() if key != "score"}, "origin": "manual"} for region in found]


def _mask(result: Sequence[dict[str, Any]], size: tuple[int, ...]) -> Mask:
    """What a prediction's brush regions cover."""
    found = np.zeros(size, dtype=bool)
    for region in result:
        if rle := region.get("value", {}).get("rle"):
            found |= brush_rle_to_mask(rle, (size[0], size[1]))
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------


def write_film(pieces: Sequence[CoinPiece], steps: Sequence[Step], folder: Path) -> tuple[Path, Path]:
    """A film strip (PNG) and a moving picture (GIF) of what the annotator saw; returns both files."""
    frames = [_frame(piece, step, number) for number, (piece, step) in enumerate(zip(pieces, steps, strict=True))]
    width, height = frames[0].size
    columns = 4
    rows = -(-len(frames) // columns)
    strip = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for number, frame in enumerate(frames):
        strip.paste(frame, (number % columns * width, number // columns * height))
    still, moving = folder / "correct.png", folder / "correct.gif"
    strip.save(still, optimize=True)
    colours = [frame.quantize(128) for frame in frames]
    colours[0].save(moving, save_all=True, append_images=colours[1:], duration=1100, loop=0, optimize=True)
    return still, moving


def _frame(piece: CoinPiece, step: Step, number: int) -> Image.Image:
    """A photo with the predicted mask in one colour, and what had to be changed in another, under a line of words."""
    scale, margin, line = 3, 8, 34
    photo = np.asarray(Image.open(piece.path).convert("RGB")).astype(np.float32)
    wrong = step.predicted != piece.truth
    for mask, colour in ((step.predicted & ~wrong, _ADDED), (wrong, _WRONG)):
        photo[mask] = 0.45 * photo[mask] + 0.55 * np.array(colour, np.float32)
    shown: NDArray[np.uint8] = photo.round().astype(np.uint8)
    height, width = shown.shape[0] * scale, shown.shape[1] * scale
    frame = Image.new("RGB", (310 + 2 * margin, 312 + line + 2 * margin), _PAPER)
    frame.paste(Image.fromarray(shown).resize((width, height), Image.Resampling.NEAREST), (margin, margin + line))
    draw = ImageDraw.Draw(frame)
    head = step.version.partition("+")[2]
    draw.text((margin, margin), f"after {number} correction{'s' * (number != 1)}", fill=_INK)
    draw.text((margin, margin + 14), f"{step.to_change:.1%} of the pixels to change", fill=_SOFT)
    draw.text((frame.width - margin - 40, margin), head or "base", fill=_SOFT)
    return frame
