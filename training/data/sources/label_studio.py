"""Exports of a Label Studio project: what people drew with brushes, polygons and rectangles.

    ROOT/SPLIT.json          the project's export, as JSON or JSON_MIN
    ROOT/label_config.xml    its labelling configuration (Settings > Labeling Interface > Code)
    ROOT/images/...          its photos

ROOT may be the export itself, with the others beside it, or the folder that `lasagna annotate` wrote, whose
label_config.xml the project has and whose photos it knows. A single export has the splits of
`training.data.sources.unsplit`.

Source of the format: Label Studio 1.23, `GET /api/projects/ID/export`, and the label_studio_sdk converter for JSON_MIN.

What always holds:

- One record per task that somebody finished, made of one annotation: the ground truth, else the newest. Cancelled
  annotations, drafts and predictions never count.
- A label without a region is certainly absent. Only where a region says that there is something of a class but not
  where (a key point alone, an ellipse) is the class left out of the record's.
- A class is called what the model reads for its label (`lasagna.labels.configuration`: alias, hint, or the label
  itself), so that a model trained here is asked the same words by the backend. Labels that read the same are one class.
- A rectangle is a mask of its area, unless a brush or polygon region of its class touches it: then it is the same
  object in coarser form, as in projects where the model draws every class with each control.
- What cannot be used is left out, never guessed, and listed in `skipped`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lasagna.errors import DataError
from lasagna.formats.annotations import DRAWN, Region, choose_annotation, compact_value, regions_to_masks
from lasagna.labels.configuration import LabelConfig, read_label_config
from training.data.records import LabelMap, Record, require_files, stack_masks
from training.data.sources.annotations import read_json, upright_size
from training.data.sources.unsplit import SPLIT_NAMES, UNSPLIT, annotated_photos, is_in_split

_WHAT = "a Label Studio export (SPLIT.json, label_config.xml and the photos)"
_WRITTEN = ("tasks.json", "coco.json", "coco_polygons.json", "report.json")
"""What `lasagna annotate` writes, which is no export."""
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""


class LabelStudioExport:
    """The finished tasks of one export.

    Attributes:
        classes: What the model reads for each label of the configuration.
        skipped: Task id -> why it is left out.
    """

    def __init__(
        self, root: Path, split: str, *, label_config: Path | None = None, photos: Path | Sequence[Path] | None = None
    ) -> None:
        """Reads the export and finds its photos.

        Args:
            root: Folder of the export.
            split: Name of the export without `.json`.
            label_config: The labelling configuration; default: `label_config.xml` in the root.
            photos: Folder of the photos, or several: Label Studio's own `media`, the root of its local files, or any
                folder that holds them by name. Default: `images` in the root, and the root.

        Raises:
            DataError: Files are missing or not what they should be, or no task can be used.
            ConfigError: The labelling configuration cannot be used.
        """
        require_files(_WHAT, root, [root])
        export, is_of_all = _find_export(root, split)
        root = root if root.is_dir() else root.parent
        config_path = label_config or root / "label_config.xml"
        folders = [photos] if isinstance(photos, Path) else list(photos or ())
        require_files(_WHAT, root, [config_path, *(folders if isinstance(photos, Path) else ())])
        folders = folders or [root / "images", root, *annotated_photos(root)]
        config = read_label_config(config_path)
        names = _Names.of(config)
        self.classes: tuple[str, ...] = names.classes
        self.skipped: dict[str, str] = {}
        self._records: list[Record] = []

        tasks = _read_tasks(export, config)
        found: dict[str, Path] = {}
        users: dict[Path, set[str]] = {}
        for task in tasks:
            try:
                found[task.id] = _find_photo(task.address, folders)
                users.setdefault(found[task.id], set()).add(str(task.address))
            except _UnusableError as reason:
                self.skipped[task.id] = str(reason)
        for task in tasks:
            if task.id not in found or (is_of_all and not is_in_split(split, found[task.id])):
                continue
            path = found[task.id]
            try:
                if len(users[path]) > 1:
                    raise _UnusableError(f"{path} could be any of {', '.join(sorted(users[path]))}; keep their folders")
                self._records.append(_record(task, path, config, names, export))
            except (_UnusableError, DataError) as reason:
                self.skipped[task.id] = str(reason)
        if not self._records:
            shown = "\n  ".join(f"task {task_id}: {reason}" for task_id, reason in list(self.skipped.items())[:5])
            raise DataError(f"{export}: none of {len(tasks)} tasks can be used\n  {shown}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def _find_export(root: Path, split: str) -> tuple[Path, bool]:
    """The export of a split, and whether it is the only one, of all tasks. Raises DataError."""
    if root.is_file():
        return root, split in UNSPLIT
    if (root / f"{split}.json").exists():
        return root / f"{split}.json", False
    exports = [path for path in sorted(root.glob("*.json")) if path.name not in _WRITTEN]
    if len(exports) == 1 and split in UNSPLIT and exports[0].stem not in SPLIT_NAMES:
        return exports[0], True
    known = ", ".join(path.stem for path in exports) or "none"
    raise DataError(f"{root}: there is no export {split}.json; the splits are the exports there: {known}")


class _UnusableError(Exception):
    """Why a task is left out."""


# --- The export -------------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    id: str
    address: Any
    annotations: list[dict[str, Any]]


def _read_tasks(path: Path, config: LabelConfig) -> list[_Task]:
    """The tasks of an export, each once, with all their annotations."""
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: an export is a list of tasks, not {str(items)[:80]!r}; export the project as JSON")
    tasks: dict[str, _Task] = {}
    for position, item in enumerate(items):
        try:
            task_id = str(item.get("id", f"at position {position}"))
            if isinstance(item.get("annotations"), list):
                data, annotations = item["data"], item["annotations"]
            elif "annotation_id" in item:
                data, annotations = item, [_from_minimal(item)] if item["annotation_id"] is not None else []
            else:
                raise KeyError("annotations")
            task = tasks.setdefault(task_id, _Task(task_id, data.get(config.image_variable), []))
            task.annotations.extend(annotations)
        except (KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: entry {position} is no task with annotations ({error!r}); export the project as JSON "
                "or JSON_MIN"
            ) from error
    return list(tasks.values())


def _from_minimal(item: dict[str, Any]) -> dict[str, Any]:
    """The annotation of an entry of JSON_MIN: data and regions, the latter under their control's name, side by side.
    It has no cancelled annotations, and does not tell which is the ground truth."""
    result = []
    for name, values in item.items():
        for value in values if isinstance(values, list) else ():
            if isinstance(value, dict):
                sizes = {key: value.get(key) for key in ("original_width", "original_height")}
                result.append({"from_name": name, "value": value, **sizes})
    return {
        "id": item["annotation_id"],
        **{key: item.get(key) for key in ("created_at", "updated_at")},
        "result": result,
    }


# --- Photos -----------------------------------------------------------------------------------------------------------


def _find_photo(address: Any, folders: Sequence[Path]) -> Path:
    """The file of an address: `/data/upload/3/c2d0f86e-a.png`, `/data/local-files/?d=b/a.png`, or any other address.

    Below each folder, the address's whole path is looked for, then the path without its first folder, and so on, and
    last the bare name; `b/a.png` is never found as `c/a.png`. An upload is also found under the name that it had.
    """
    if not isinstance(address, str) or not address.strip() or address.startswith("data:"):
        raise _UnusableError(f"the task names no file as its photo, but {str(address)[:80]!r}")
    url = urlsplit(address.strip())
    path = parse_qs(url.query).get("d", [""])[0] if "/local-files" in url.path else unquote(url.path)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise _UnusableError(f"{address[:200]} names no file")
    names = [parts[-1]]
    if "/data/upload/" in url.path:
        names.append(_UPLOAD_PREFIX.sub("", parts[-1], count=1))
    for name in names:
        for first in range(len(parts)):
            for folder in folders:
                candidate = folder.joinpath(*parts[first:-1], name)
                if candidate.is_file():
                    return candidate
    raise _UnusableError(f"the photo {address[:200]} is not below {' or '.join(str(folder) for folder in folders)}")


# --- Regions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """The classes, and for every label, as regions write it, the class that it is."""

    classes: tuple[str, ...]
    index: dict[str, int]

    @classmethod
    def of(cls, config: LabelConfig) -> "_Names":
        texts = tuple(dict.fromkeys(query.text for query in config.classes))
        index = {query.name: texts.index(query.text) for query in config.classes}
        for control in config.controls:
            for label in control.labels:
                if label.value in index:
                    index.setdefault(label.written, index[label.value])
        return cls(texts, index)


def _record(task: _Task, path: Path, config: LabelConfig, names: _Names, export: Path) -> Record:
    annotation = choose_annotation(task.annotations)
    size = upright_size(path)
    found = [region for result in annotation.get("result") or () for region in _regions(result, size, config, names)]
    regions = [region for region in found if region.kind in DRAWN]
    pointed = {region.key for region in found if region.kind == "keypoint"} - {region.key for region in regions}
    undecided = pointed | {region.key for region in found if region.kind == "other"}
    kept = [index for index in range(len(names.classes)) if index not in undecided]
    if not kept:
        raise _UnusableError("every label has a region that is neither brush nor polygon nor rectangle")
    position = {index: i for i, index in enumerate(kept)}
    drawn = [replace(region, key=position[region.key]) for region in regions if region.key in position]
    return Record(
        "label_studio",
        task.id,
        path,
        classes=tuple(names.classes[index] for index in kept),
        labels=partial(_labels, drawn, size, f"{export}: task {task.id}"),
        size=size,
    )


def _regions(
    result: dict[str, Any], size: tuple[int, int], config: LabelConfig, names: _Names
) -> Iterator[Region[int]]:
    """A region for each label of an entry of `result`; of kind "other" where we know no such control (an ellipse, a
    bitmask). Entries without labels (choices, text) give none."""
    value = result.get("value")
    if not isinstance(value, dict) or result.get("to_name", config.image_name) != config.image_name:
        return
    written = [
        text for key, texts in value.items() if key.endswith("labels") and isinstance(texts, list) for text in texts
    ]
    control = next((control for control in config.controls if control.name == result.get("from_name")), None)
    kind = control.kind if control is not None else "other"
    where = f"region {result.get('id', '')} of {result.get('from_name')}"
    for text in written:
        label = control.label_written(text) if control is not None else None
        index = names.index.get(label.value if label is not None else text)
        if kind not in DRAWN:
            if index is not None:
                yield Region(where, kind, index, {})
            continue
        if label is None or index is None:
            raise _UnusableError(
                f"{where} has the label {text!r}, which the labelling configuration does not: a newer one?"
            )
        if result.get("image_rotation"):
            raise _UnusableError("the photo was turned in the editor")
        width, height = result.get("original_width"), result.get("original_height")
        if width and height and (height, width) != size:
            raise _UnusableError(
                f"{where} was drawn on {width} x {height} pixels, but the photo has {size[1]} x {size[0]}"
            )
        yield Region(where, kind, index, compact_value(value))


def _labels(drawn: list[Region[int]], size: tuple[int, int], where: str) -> LabelMap:
    try:
        return stack_masks(size, regions_to_masks(drawn, size))
    except DataError as error:
        raise DataError(f"{where}, {error}; correct the task and export again") from error
