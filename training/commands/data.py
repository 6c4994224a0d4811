"""The command `lasagna data`: which data sets are under a root, and what they look like.

What always holds: a data set counts as found when its reader opens it, so that what this command finds, training finds.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from lasagna.annotate.gallery import image_to_thumbnail, make_card, render_gallery, thumbnail_name
from lasagna.errors import ConfigError, DataError, LasagnaError
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.progress import progress_bar
from lasagna.settings import data_folder
from training.data.records import UNKNOWN
from training.data.sources import SOURCES, Source, open_source
from training.data.spread import spread

if TYPE_CHECKING:
    from lasagna.annotate.gallery import Card
    from lasagna.masks.segmentation import Segmentation
    from training.data.records import Record


@dataclass(frozen=True)
class Found:
    """One split of one data set: its source, or why it cannot be opened."""

    name: str
    split: str
    source: Source | None
    reason: str = ""


@click.command(
    epilog="""\b
Examples:
  lasagna data --root datasets
  LASAGNA_DATA=datasets lasagna data ade20k refcoco --show page.html
  lasagna data folder --root datasets/photos --split val --check
"""
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of data sets; of a format of one's own, the data set. Default: the setting `data` (LASAGNA_DATA).",
)
@click.option("--split", "splits", multiple=True, help="Only this split; repeatable. Default: all that are published.")
@click.option("--check", is_flag=True, help="Read every mask, and list those that cannot be read.")
@click.option("--show", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with a few photos of each.")
@click.option("--samples", type=click.IntRange(1), default=4, show_default=True, help="Photos of each on that page.")
def data(
    names: tuple[str, ...], root: Path | None, splits: tuple[str, ...], check: bool, show: Path | None, samples: int
) -> None:
    """List the data sets under a root, by NAME (default: all published ones), and check that they are complete.

    Exit code 1 when a data set that was named cannot be read.
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise ConfigError(f"unknown data set {unknown[0]!r}; known are {', '.join(sorted(SOURCES))}")
    if show is not None and not show.parent.is_dir():
        raise DataError(f"{show}: the folder {show.parent} does not exist")
    root = root or data_folder()
    # The root of one's own formats is the data set itself, so they are looked for only when named.
    wanted = names or tuple(name for name, entry in SOURCES.items() if not entry.own)
    found = []
    for name in wanted:
        for split in splits or SOURCES[name].splits:
            found.append(_open(name, root, split))
            _print(found[-1])
    failures = {f"{f.name} {f.split}": f.reason for f in found if f.source is None}
    if check:
        failures |= _check(found)
    if show is not None:
        cards = [card for f in found for card in _cards(f, samples, show.parent)]
        show.write_text(_page(cards), encoding="utf-8")
        click.echo(f"look at {show}")
    if names and failures:
        sys.exit(1)


def _open(name: str, root: Path, split: str) -> Found:
    try:
        return Found(name, split, open_source(name, root, split))
    except LasagnaError as error:
        return Found(name, split, None, str(error))


def _print(found: Found) -> None:
    title = f"{found.name} {found.split}"
    if found.source is None:
        click.secho(f"{title}: not found\n  " + found.reason.replace("\n", "\n  "), fg="yellow")
        return
    classes = f", {len(found.source.classes)} classes" if found.source.classes else ""
    skipped = len(getattr(found.source, "skipped", ()))
    left_out = f", {skipped} left out" if skipped else ""
    click.secho(f"{title}: {len(found.source)} records{classes}{left_out}", fg="green")


def _check(found: Sequence[Found]) -> dict[str, str]:
    """Reads every mask; returns what could not be read."""
    failures: dict[str, str] = {}
    for one in found:
        if one.source is None:
            continue
        with progress_bar(Console(stderr=True), f"{one.name} {one.split}", len(one.source)) as advance:
            for index in range(len(one.source)):
                record = one.source[index]
                try:
                    if record.labels is not None:
                        record.read()
                except LasagnaError as error:
                    failures[f"{one.name} {one.split} {record.image_id}"] = str(error)
                advance()
    for where, reason in failures.items():
        click.secho(f"{where}: {reason}", fg="red")
    return failures


def _cards(found: Found, samples: int, folder: Path) -> "Iterator[Card]":
    """Cards of some records, evenly spread; their thumbnails are written beside the page."""
    if found.source is None:
        return
    for index in spread(len(found.source), samples):
        record = found.source[index]
        if record.image_path is None:
            continue
        image = load_image(record.image_path)
        thumbnail = thumbnail_name(hashlib.sha256(record.image_path.read_bytes()).hexdigest()[:16])
        path = folder / thumbnail
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image_to_thumbnail(image))
        answer = record_to_segmentation(record, (image.height, image.width))
        title = f"{found.name} {found.split} {record.image_id}"
        yield make_card(title, record.image_path, thumbnail, folder, answer, 0.0)


def record_to_segmentation(record: "Record", size: tuple[int, int]) -> "Segmentation":
    """The annotation as an answer that is sure of everything, with the void pixels as one class more.

    A text's target is called by the text; a conversation has no mask, and its questions and answers are absent classes.

    Args:
        record: The annotation.
        size: (height, width) of the photo.

    Raises:
        DataError: The masks cannot be read, or are of another size.
    """
    if record.labels is None:
        return Segmentation(size, tuple(ClassAnswer(f"{ask} – {say}", 0.0, None) for ask, say in record.turns))
    labels = record.read()
    if labels.shape[1:] != size:
        raise DataError(
            f"{record.image_path} is {size[1]} x {size[0]}, its masks {labels.shape[2]} x {labels.shape[1]}"
        )
    names = record.classes or (" / ".join(record.texts) + (f" – {record.answer}" if record.answer else ""),)
    masks = [(labels == index).any(0) for index in range(len(names))]
    answers = [
        ClassAnswer(name, float(mask.any()), mask if mask.any() else None)
        for name, mask in zip(names, masks, strict=True)
    ]
    void = (labels == UNKNOWN).any(0)
    if void.any():
        answers.append(ClassAnswer("(void)", 1.0, void))
    return Segmentation(size, tuple(answers))


def _page(cards: "Sequence[Card]") -> str:
    classes = dict.fromkeys(shape.name for card in cards for shape in [*card.present, *card.absent])
    return render_gallery(cards, [], model_version=None, class_names=list(classes), seconds=0.0)
