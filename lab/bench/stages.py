"""`lasagna bench stages`: what an image costs `lasagna annotate`, stage by stage, in processor time and in bytes.

The figures that the arithmetic of a large corpus needs (docs/corpora.md): which stage is the slowest decides how many
machines of which kind help.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from PIL import Image

from lab.bench.command import Row, report, sample_classes, sample_images
from lab.names import asked_everything
from lasagna.annotate.addresses import Addresses
from lasagna.annotate.export import Export
from lasagna.annotate.folder import find_images
from lasagna.annotate.gallery import image_to_thumbnail
from lasagna.annotate.output import OutputFolder
from lasagna.annotate.pipeline import Reader
from lasagna.annotate.results import Results
from lasagna.annotate.writers import WRITERS, Job
from lasagna.formats.hygiene import Hygiene
from lasagna.formats.record import segmentation_to_record
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassQuery, Segmentation


@click.command(
    epilog="""\b
Examples:
  lasagna bench stages
  lasagna bench stages --side 2048 --classes 133 --json
"""
)
@click.option("--model", default="nano", show_default=True, help="Shipped name, folder or hub id.")
@click.option("--side", type=click.IntRange(64), default=1024, show_default=True, help="Of the photos, in pixels.")
@click.option("--classes", type=click.IntRange(1), default=20, show_default=True, help="Asked of each.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds over three photos.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def stages(model: str, side: int, classes: int, repeats: int, as_json: bool, out: Path | None) -> None:
    """Processor milliseconds and bytes on disk of each stage, per image, alone on one thread.

    The stages: reading and decoding; the thumbnail; the model; keeping the answer; encoding each format; and "append",
    which is done for one image after the other, in one process, whatever does the rest.
    """
    with tempfile.TemporaryDirectory(prefix="lasagna-stages-") as scratch:
        rows = _rows(Path(scratch), model, side, classes, repeats)
    setting: Row = {"model": model, "side": side, "classes": classes, "repeats": repeats}
    report("stages", setting, rows, device="cpu", as_json=as_json, out=out)


def _make_photos(folder: Path, side: int) -> None:
    folder.mkdir()
    for i, photo in enumerate(sample_images(3)):
        large = Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC)
        large.save(folder / f"{i}.jpg", quality=90)


class _Stages:
    """Processor time and bytes of each stage, photo by photo."""

    def __init__(self) -> None:
        self._ms: dict[str, list[float]] = {}
        self._bytes: dict[str, list[int]] = {}

    def timed(self, stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        value = work(*arguments)
        self._ms.setdefault(stage, []).append(1000 * (time.process_time() - began))
        return value

    def add_bytes(self, stage: str, count: int) -> None:
        self._bytes.setdefault(stage, []).append(count)

    def clear(self) -> None:
        self._ms.clear()
        self._bytes.clear()

    def rows(self) -> list[Row]:
        """The means of each stage."""
        return [
            {
                "stage": stage,
                "ms": statistics.mean(values),
                "bytes": round(statistics.mean(self._bytes.get(stage, [0]))),
            }
            for stage, values in self._ms.items()
        ]


def _rows(folder: Path, model_name: str, side: int, classes: int, repeats: int) -> list[Row]:
    from lasagna.assistant.lasagna import Lasagna

    _make_photos(folder / "photos", side)
    model = asked_everything(Lasagna.from_pretrained(model_name, device="cpu"))
    queries = [ClassQuery(name) for name in sample_classes(classes)]
    xml = make_label_config(queries)
    out = folder / "out"
    job = Job(out, [q.name for q in queries], "v", parse_label_config(xml), xml, Addresses(folder, None), Hygiene())
    found = find_images([str(folder / "photos")])
    kept = Results(out / ".results" / "kept")
    reader = Reader(Results(out / ".results" / "empty"), 1 << 30, 1 << 30)
    stages = _Stages()

    def keep(content: str, answer: Segmentation) -> None:
        kept.put(content, segmentation_to_record(answer))

    exports = {name: Export(job, [name], gallery=False) for name in WRITERS}
    bare, gallery = Export(job, [], gallery=False), Export(job, [], gallery=True)
    everything = Export(job, list(WRITERS))
    folder_out = OutputFolder(out)
    everything.begin(folder_out, found, {})
    for turn in range(repeats + 1):
        if turn == 1:  # the first round loads libraries
            stages.clear()
        for file in found.files:
            prepared = stages.timed("read", reader, file)
            assert prepared.image is not None
            picture = stages.timed("thumbnail", image_to_thumbnail, prepared.image)
            answer = stages.timed("model", model.segment, prepared.image, job.class_names)
            record = json.dumps(segmentation_to_record(answer))
            stages.timed("keep", keep, prepared.content, answer)
            _written(out)
            for name, export in {"report": bare, **exports, "gallery": gallery}.items():
                pieces = stages.timed(f"encode {name}", export.encode, file, prepared.content, answer, 0.1)
                stages.add_bytes(f"encode {name}", _size(pieces.get(name)) + _written(out))
            stages.add_bytes("read", file.path.stat().st_size if file.path else 0)
            stages.add_bytes("thumbnail", len(picture))
            stages.add_bytes("keep", len(record))
            pieces = everything.encode(file, prepared.content, answer, 0.1)
            stages.timed("append", everything.append, file, prepared.content, pieces)
    folder_out.close()
    return stages.rows()


def _size(piece: Any) -> int:
    """Bytes that a piece comes to in a file: as JSON, but text in it as it is."""
    text = "" if piece is None else json.dumps(piece, ensure_ascii=False)
    return len(text.encode()) - text.count('\\"')


def _written(out: Path) -> int:
    """Bytes of the files of the output that are complete; takes them away."""
    files = [path for path in (out / ".results" / "next").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink()
    return size
