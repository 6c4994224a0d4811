"""The files that `lasagna annotate` assembles from its per-image results: a writer per format, the report, the gallery.

A writer is given each image once, in order, and then writes what belongs to the whole set. Images are worked off one at
a time, so the masks of only one image are in memory.
"""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from lasagna.batch import Outcome
from lasagna.errors import ConfigError
from lasagna.folder import ImageFile, ImageSet, printable
from lasagna.formats.coco import CocoDataset, Variant
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.formats.png import class_table, indices_to_png, segmentation_to_indices
from lasagna.formats.record import record_to_segmentation
from lasagna.formats.voc import segmentation_to_voc
from lasagna.formats.yolo import segmentation_to_yolo, yolo_data_yaml
from lasagna.gallery import make_card, render_gallery, thumbnail_name
from lasagna.labels import LabelConfig
from lasagna.results import OutputFolder, ResultStore
from lasagna.segmentation import Segmentation


@dataclass(frozen=True)
class Addresses:
    """What `tasks.json` calls an image: `prefix` and the image's quoted path below `root`."""

    root: Path
    prefix: str

    def of(self, image: ImageFile) -> str:
        if not image.path.is_relative_to(self.root):
            raise ConfigError(f"{image.path} is not below the image root {self.root}; choose a root above all images")
        return self.prefix + quote(os.fsencode(image.path.relative_to(self.root)))


@dataclass(frozen=True)
class Job:
    """What every writer needs to know of the run."""

    out: OutputFolder
    class_names: Sequence[str]
    model_version: str
    images: ImageSet
    label_config: LabelConfig
    label_config_xml: str
    addresses: Addresses


class Writer(Protocol):
    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        """Takes one image: its name, the hash of its content, and its answers."""

    def finish(self) -> None:
        """Writes what belongs to the whole set."""


class LabelStudioWriter:
    """`tasks.json` (tasks with predictions), the `label_config.xml` that they fit, and `IMPORT.md` (how to import)."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tasks: list[str] = []  # as JSON text: a list of ints takes eight times as much memory

    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        config = self._job.label_config
        prediction = segmentation_to_label_studio(
            segmentation, config, f"{content} {image.name}", self._job.model_version
        )
        task = {"data": {config.image_variable: self._job.addresses.of(image)}, "predictions": [prediction]}
        self._tasks.append(json.dumps(task, ensure_ascii=False, separators=(",", ":")))

    def finish(self) -> None:
        self._job.out.write("tasks.json", "[\n" + ",\n".join(self._tasks) + "\n]\n")
        self._job.out.write("label_config.xml", self._job.label_config_xml)
        self._job.out.write("IMPORT.md", import_steps(self._job.addresses, self._job.images.root))


class CocoWriter:
    """`coco.json` with RLE (exact) and `coco_polygons.json`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        variants: tuple[tuple[str, Variant], ...] = (("coco.json", "rle"), ("coco_polygons.json", "polygons"))
        self._datasets = {name: CocoDataset(job.class_names, job.model_version, variant) for name, variant in variants}

    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        for dataset in self._datasets.values():
            dataset.add(image.name, segmentation)

    def finish(self) -> None:
        for name, dataset in self._datasets.items():
            self._job.out.write(name, json.dumps(dataset.to_dict(), ensure_ascii=False))


class MasksWriter:
    """`masks/<image>.png` with class indices, and `masks/classes.json` with their names and colours."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        png = indices_to_png(segmentation_to_indices(segmentation), len(self._job.class_names))
        self._job.out.write_with(f"masks/{image.stem}.png", lambda file: png.save(file, "PNG"))

    def finish(self) -> None:
        table = class_table(self._job.class_names)
        self._job.out.write("masks/classes.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")


class YoloWriter:
    """`yolo/`: `labels/<image>.txt`, `images` (a link to the image folder), `images.txt` and `data.yaml`."""

    def __init__(self, job: Job) -> None:
        twice = [file.name for file in job.images.files if file.stem == file.name and Path(file.name).suffix]
        if twice:
            raise ConfigError(
                f"YOLO finds labels by the image's name without its ending, and {twice[0]} shares that name with "
                "another image in its folder; rename one of them or leave out --format yolo"
            )
        self._job = job
        self._class_ids = {name: i for i, name in enumerate(job.class_names)}
        self._names: list[str] = []

    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        self._names.append(image.name)
        self._job.out.write(f"yolo/labels/{image.stem}.txt", segmentation_to_yolo(segmentation, self._class_ids))

    def finish(self) -> None:
        self._job.out.write("yolo/images.txt", "".join(f"./images/{name}\n" for name in self._names))
        self._job.out.write("yolo/data.yaml", yolo_data_yaml(self._job.class_names))
        self._job.out.link("yolo/images", self._job.images.root)


class VocWriter:
    """`voc/<image>.xml`: a box per connected part."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def add(self, image: ImageFile, content: str, segmentation: Segmentation) -> None:
        self._job.out.write(f"voc/{image.stem}.xml", segmentation_to_voc(segmentation, image.name))

    def finish(self) -> None:
        pass


WRITERS: dict[str, Callable[[Job], Writer]] = {
    "label-studio": LabelStudioWriter,
    "coco": CocoWriter,
    "masks": MasksWriter,
    "yolo": YoloWriter,
    "voc": VocWriter,
}
"""What `--format` takes."""

OUTPUT_FOLDERS = ("gallery", "masks", "yolo", "voc")
"""Folders in OUT that hold files of ours, some of them images."""


def assemble(
    job: Job,
    formats: Sequence[str],
    store: ResultStore,
    outcome: Outcome,
    options: dict[str, Any],
    on_done: Callable[[], None],
) -> dict[str, Any]:
    """Writes every file of OUT from the stored results. Returns the report."""
    writers = [WRITERS[name](job) for name in formats]
    cards, rows = [], []
    for file in job.images.files:
        content = outcome.contents.get(file)
        record = None if content is None else store.get(content)
        if content is None or record is None:
            continue
        segmentation, seconds = record_to_segmentation(record), float(record["seconds"])
        for writer in writers:
            writer.add(file, content, segmentation)
        thumbnail = thumbnail_name(content)
        job.out.keep(thumbnail)
        cards.append(make_card(file.name, file.path, thumbnail, job.out.path, segmentation, seconds))
        rows.append(image_record(file.name, seconds, segmentation))
        on_done()
    for writer in writers:
        writer.finish()
    failures = [{"path": path, "reason": reason} for path, reason in outcome.failures.items()]
    report = {
        "model_version": job.model_version,
        "image_root": printable(job.images.root),
        "options": options,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "images": rows,
        "failures": failures,
    }
    page = render_gallery(
        cards, failures, model_version=job.model_version, class_names=job.class_names, seconds=report["seconds"]
    )
    job.out.write("gallery.html", page)
    job.out.write("report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    job.out.finish()
    return report


def image_record(name: str, seconds: float, segmentation: Segmentation) -> dict[str, Any]:
    """An image's row of `report.json`. Areas are in pixels."""
    height, width = segmentation.size
    return {
        "path": name,
        "width": width,
        "height": height,
        "seconds": round(seconds, 4),
        "classes": [
            {
                "name": answer.name,
                "present": answer.is_present,
                "probability": round(float(answer.probability), 6),
                "area": answer.area,
            }
            for answer in segmentation.classes
        ],
    }


def import_steps(addresses: Addresses, folder: Path) -> str:
    """How to get `tasks.json` into Label Studio, for this run's folders."""
    steps = [
        "Create a project. Under Settings > Labeling Interface > Code, paste `label_config.xml` and save.",
        "Import `tasks.json` (Import button, or `POST /api/projects/ID/import`). Each task comes with its pre-labels.",
    ]
    if addresses.prefix.startswith("/data/local-files/"):
        steps.insert(
            0,
            "Start Label Studio so that it serves the folder above the images:\n\n"
            "       LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true \\\n"
            f"       LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(printable(addresses.root))} label-studio",
        )
        steps.insert(
            2,
            f"Under Settings > Cloud Storage > Add Source Storage > Local Files, add `{printable(folder)}` and save: "
            "Label Studio serves only files in a storage. Do not sync it, which would make each image a second task.",
        )
    else:
        steps.append(
            f"The tasks expect the images at `{addresses.prefix}` and their path below `{printable(addresses.root)}`."
        )
    numbered = "".join(f"{i}. {step}\n" for i, step in enumerate(steps, start=1))
    return f"# Importing these pre-labels into Label Studio\n\n{numbered}"
