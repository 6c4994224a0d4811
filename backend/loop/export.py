"""A project's corrections as a data set: masks, COCO or YOLO, with the photos, for any other program.

What always holds: the corrections are read as training reads them (`training.data.sources.label_studio`): of several
annotations the ground truth counts, else the newest, and what cannot be used is left out and named. OUT appears whole
or not at all, and nothing that is there is written over. Classes that nobody decided about in a photo cannot be written
in these formats, where what is not marked is not there: they are listed by photo in `export.json`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import numpy as np

from backend.loop.snapshot import Snapshot
from lasagna.errors import ConfigError
from lasagna.formats.coco import coco_category_ids, coco_frame, segmentation_to_coco
from lasagna.formats.png import class_table, indices_to_png, segmentation_to_indices
from lasagna.formats.yolo import segmentation_to_yolo, yolo_data_yaml, yolo_label_path
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from training.data.records import UNKNOWN, LabelMap, Record
from training.data.sources.label_studio import LabelStudioExport

Format = Literal["masks", "coco", "yolo"]
FORMATS: tuple[Format, ...] = ("masks", "coco", "yolo")
VOID = 255
"""In masks: what nobody decided about; of more than 255 classes 65535, and with exactly 255 no value is left for it."""
_VOID_COLOUR = (224, 224, 192)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        photos: How many.
        classes: In the order of the labelling configuration.
        undecided: Photo -> classes that nobody decided about there.
        skipped: Task -> why it is not among them.
    """

    photos: int
    classes: tuple[str, ...]
    undecided: dict[str, list[str]]
    skipped: dict[str, str]


def check_out(out: Path) -> None:
    """Raises ConfigError where something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name a new folder: an export writes over nothing")


def write_export(
    snapshot: Snapshot, out: Path, formats: Sequence[Format], advance: Callable[[], None] = lambda: None
) -> Exported:
    """Writes a snapshot that is not divided as a data set.

    Args:
        snapshot: `Snapshots.take(divided=False)`.
        out: A folder that is new or empty.
        formats: Some of `FORMATS`.
        advance: Called once per photo.

    Raises:
        ConfigError: `out` is not empty, or YOLO has no room for two photos of one name.
        DataError: A mask is damaged.
    """
    check_out(out)
    source = LabelStudioExport(snapshot.folder, "train")
    names = _photo_names(json.loads((snapshot.folder / "train.json").read_text(encoding="utf-8")))
    part = out.with_name(f".{out.name}-{uuid4().hex[:8]}.part")
    (part / "images").mkdir(parents=True)
    try:
        writers = [_WRITERS[name](part, source.classes) for name in dict.fromkeys(formats)]
        undecided: dict[str, list[str]] = {}
        written: list[str] = []
        for record in (source[i] for i in range(len(source))):
            name, labels = names[record.image_id], record.read()
            assert record.image_path is not None
            shutil.copyfile(record.image_path, part / "images" / name)
            answers, void = _segmentation(record, labels, source.classes)
            for writer in writers:
                writer.add(name, answers, void)
            if open_ := [one for one in source.classes if one not in record.classes]:
                undecided[name] = open_
            written.append(name)
            advance()
        for writer in writers:
            writer.finish()
        found = Exported(len(source), source.classes, undecided, dict(snapshot.skipped or {}))
        about = {"snapshot": snapshot.id, "classes": found.classes, "undecided": undecided, "skipped": found.skipped}
        (part / "export.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")
        report = {"image_root": str(out.resolve() / "images"), "images": [{"path": name} for name in written]}
        (part / "report.json").write_text(json.dumps({**report, "failures": []}), encoding="utf-8")
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return found


def _photo_names(tasks: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Entry of a snapshot -> file name: as the photo was imported, with the task before it where that is taken."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for task in tasks:
        id, photo = str(task["id"]), str(task["snapshot"]["photo"])
        address = next((text for text in _texts(task["data"]) if "/" in text or "." in text), "")
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [""])[0]  # of Label Studio's local files
        path = PurePosixPath(local or unquote(parts.path))
        stem = _UPLOADED.sub("", re.sub(r"[^\w. ()+-]", "_", path.stem)).strip(". ") or "photo"
        if stem.casefold() in taken:
            stem = f"{id.replace(':', '-')}-{stem}"
        taken.add(stem.casefold())
        names[id] = stem + Path(photo).suffix
    return names


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]


def _segmentation(
    record: Record, labels: LabelMap, classes: Sequence[str]
) -> tuple[Segmentation, "np.ndarray[Any, np.dtype[np.bool_]]"]:
    """What was marked as answers, and bool (H, W): what nobody decided about."""
    place = {name: index for index, name in enumerate(record.classes)}
    answers = []
    for name in classes:
        mask = (labels == place[name]).any(0) if name in place else None
        there = mask is not None and bool(mask.any())
        answers.append(ClassAnswer(name, float(there), mask if there else None))
    void = (labels == UNKNOWN).any(0) & ~(labels >= 0).any(0)
    height, width = labels.shape[1:]
    return Segmentation((height, width), tuple(answers)), void


class _Masks:
    """`masks/NAME.png` and `masks/classes.json`, as `lasagna annotate` writes them, so that its reader takes them."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self._folder, self._classes = out / "masks", classes
        self._folder.mkdir()

    def add(self, name: str, answers: Segmentation, void: Any) -> None:
        indices = segmentation_to_indices(answers)
        if len(self._classes) != VOID:
            indices[void] = VOID if len(self._classes) < VOID else 65535
        picture = indices_to_png(indices, len(self._classes))
        if picture.mode == "P":  # with a short palette Pillow would save fewer bits than void needs
            colours = picture.getpalette() or []
            picture.putpalette([*colours, *[0] * (3 * VOID - len(colours)), *_VOID_COLOUR][: 3 * 256])
        picture.save(self._folder / f"{Path(name).stem}.png")

    def finish(self) -> None:
        text = json.dumps(class_table(self._classes), ensure_ascii=False, indent=1) + "\n"
        (self._folder / "classes.json").write_text(text, encoding="utf-8")


class _Coco:
    """`coco.json`, with RLE."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self._path, self._frame = out / "coco.json", coco_frame(classes, "")
        self._frame["info"] = {"description": "corrections of a Label Studio project"}
        self._ids = coco_category_ids(classes)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, name: str, answers: Segmentation, void: Any) -> None:
        height, width = answers.size
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "width": width, "height": height})
        first = len(self._annotations) + 1
        for annotation in segmentation_to_coco(answers, self._ids, number, first):
            del annotation["score"]  # a person drew it
            self._annotations.append(annotation)

    def finish(self) -> None:
        content = {**self._frame, "images": self._images, "annotations": self._annotations}
        self._path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


class _Yolo:
    """`yolo/`: `labels`, `images` (the same files as in OUT/images, or copies), `images.txt` and `data.yaml`."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self._out, self._folder, self._classes = out, out / "yolo", classes
        (self._folder / "images").mkdir(parents=True)
        self._names: list[str] = []

    def add(self, name: str, answers: Segmentation, void: Any) -> None:
        ids = {one: index for index, one in enumerate(self._classes)}
        labels = self._folder / yolo_label_path(name)
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(segmentation_to_yolo(answers, ids), encoding="utf-8")
        try:
            os.link(self._out / "images" / name, self._folder / "images" / name)
        except OSError:  # a file system without links
            shutil.copyfile(self._out / "images" / name, self._folder / "images" / name)
        self._names.append(name)

    def finish(self) -> None:
        listed = "".join(f"./images/{name}\n" for name in self._names)
        (self._folder / "images.txt").write_text(listed, encoding="utf-8")
        (self._folder / "data.yaml").write_text(yolo_data_yaml(self._classes), encoding="utf-8")


_WRITERS: dict[str, type[_Masks] | type[_Coco] | type[_Yolo]] = {"masks": _Masks, "coco": _Coco, "yolo": _Yolo}
