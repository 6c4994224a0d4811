"""Exports of a Label Studio project: what people drew.

    ROOT/SPLIT.json          the project's export, as JSON or JSON_MIN
    ROOT/label_config.xml    its labelling configuration (Settings > Labeling Interface > Code)
    ROOT/labels.json         optional: since when each label stands in it (`lasagna labels list PROJECT --json`)
    ROOT/images/...          its photos

ROOT may be the export itself, with the others beside it, or the folder that `lasagna annotate` wrote, whose
label_config.xml the project has and whose photos it knows. A single export has the splits of
`training.data.sources.unsplit`.

Source of the format: Label Studio 1.23, `GET /api/projects/ID/export`, and the label_studio_sdk converter for JSON_MIN.

What always holds:

- One record per image of a task that somebody finished, made of one annotation: the ground truth, else the newest.
  Cancelled annotations, drafts and predictions never count. Regions are read by `lasagna.formats.regions`.
- A class is absent only where somebody could have marked it and did not. It is *undecided*, and not among the record's
  classes, where a region of it is there whose extent cannot be told: a line, a damaged mask, an image of another size.
  Unless it is drawn, it is also undecided where its label did not stand in the configuration when the annotation was
  changed last, or where that is not known (`lasagna.labels.history`); where a region of it is a point or has no area;
  and, with all others, where a region has no label or lies on an image that the task does not show.
- Nothing is decided on a page of several without a region: perhaps nobody looked at it.
- Pixels of a region without a label are void, unless they are drawn as something.
- A region that cannot be used leaves its class out and the rest in, and is named in `left_out`. Where all regions were
  drawn on an image of another size, the photo is taken for another and left out.
- A class is called what the model reads for its label (`lasagna.labels.parts`: alias, hint, or the label itself), so
  that a model trained here is asked the same words by the backend. Labels that read the same are one class.
- What cannot be used is left out, never guessed, and listed in `skipped`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lasagna.errors import DataError
from lasagna.formats.annotations import (
    MOST_REGIONS,
    choose_annotation,
    has_area,
    region_to_mask,
    regions_to_masks,
    regions_to_objects,
)
from lasagna.formats.first_uses import FirstUses
from lasagna.formats.regions import Reading, Region, read_regions
from lasagna.labels.configuration import LabelConfig, TaskImage, read_label_config
from lasagna.labels.history import LabelHistory
from lasagna.labels.parts import ImageConfig
from lasagna.masks.objects import Objects
from training.data.records import OTHER, UNKNOWN, LabelMap, Record, require_files, stack_masks
from training.data.sources.annotations import read_json, upright_size
from training.data.sources.unsplit import SPLIT_NAMES, UNSPLIT, annotated_photos, is_in_split

_WHAT = "a Label Studio export (SPLIT.json, label_config.xml and the photos)"
HISTORY = "labels.json"
"""The file that says since when labels stand in the configuration (`LabelHistory.as_dict`)."""
NO_EXPORTS = ("tasks.json", "coco.json", "coco_polygons.json", "report.json", HISTORY)
"""What may lie beside an export: what `lasagna annotate` writes, and the labels' history."""
_MOST_NOTES = 20
"""Of one annotation: what was left out of it, by region."""
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""


class LabelStudioExport:
    """The finished images of one export.

    Attributes:
        classes: What the model reads for each label of the configuration, and of the tasks.
        skipped: Task id (of one that shows several images: with the image, "7:left") -> why it is left out.
        left_out: The same -> what of it could not be used, of those that are not skipped.
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
        self.skipped: dict[str, str] = {}
        self.left_out: dict[str, list[str]] = {}
        self._records: list[Record] = []

        tasks = _read_tasks(export, config)
        history = _read_history(root / HISTORY)
        uses = _first_uses(tasks, history)
        self.classes = _all_classes(config, tasks)
        shown = [(task, image) for task in tasks for image in task.chosen]
        found: dict[str, Path] = {}
        users: dict[Path, set[str]] = {}
        for task, image in shown:
            name = task.name_of(image)
            try:
                found[name] = _find_photo(task.photo or image.address, folders, image.problem)
                users.setdefault(found[name], set()).add(task.photo or image.address)
            except _UnusableError as reason:
                self.skipped[name] = str(reason)
        for task, image in shown:
            name = task.name_of(image)
            if name not in found or (is_of_all and not is_in_split(split, found[name])):
                continue
            path = found[name]
            try:
                if len(users[path]) > 1:
                    raise _UnusableError(f"{path} could be any of {', '.join(sorted(users[path]))}; keep their folders")
                record, notes = _record(task, image, path, history, uses, export)
            except (_UnusableError, DataError) as reason:
                self.skipped[name] = str(reason)
            else:
                self._records.append(record)
                if notes:
                    self.left_out[name] = notes
        if not self._records:
            reasons = "\n  ".join(f"task {task_id}: {reason}" for task_id, reason in list(self.skipped.items())[:5])
            raise DataError(f"{export}: none of {len(tasks)} tasks can be used\n  {reasons}")

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
    exports = [path for path in sorted(root.glob("*.json")) if path.name not in NO_EXPORTS]
    if len(exports) == 1 and split in UNSPLIT and exports[0].stem not in SPLIT_NAMES:
        return exports[0], True
    known = ", ".join(path.stem for path in exports) or "none"
    raise DataError(f"{root}: there is no export {split}.json; the splits are the exports there: {known}")


class _UnusableError(Exception):
    """Why an image is left out."""


# --- The export -------------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    """A task of an export.

    Attributes:
        images: That it shows.
        annotations: All of them.
        photo: The file of its one image, where the export says it (a snapshot of ours does): then only the image
            `place`, (name, page), counts.
    """

    id: str
    images: tuple[TaskImage, ...]
    annotations: list[dict[str, Any]]
    photo: str | None = None
    place: tuple[str, int | None] | None = None
    readings: dict[int, Reading] = field(default_factory=dict)

    @property
    def chosen(self) -> list[TaskImage]:
        if self.place is None:
            return list(self.images)
        return [i for i in self.images if (i.config.image_name, i.config.item_index) == self.place]

    @property
    def configs(self) -> list[ImageConfig]:
        return [image.config for image in self.images]

    def name_of(self, image: TaskImage) -> str:
        return self.id if len(self.chosen) == 1 else f"{self.id}:{image.config.name}"

    def reading(self, annotation: dict[str, Any], renamed: Mapping[str, str]) -> Reading:
        """The regions of an annotation, read once."""
        place = id(annotation)
        if place not in self.readings:
            self.readings[place] = read_regions(annotation.get("result") or (), self.configs, renamed)
        return self.readings[place]


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
            if task_id not in tasks:
                ours = item.get("snapshot") if isinstance(item.get("annotations"), list) else None
                place = (str(ours["image"]), ours["page"]) if ours else None
                tasks[task_id] = _Task(task_id, config.of_task(data), [], ours["photo"] if ours else None, place)
            tasks[task_id].annotations.extend(annotations)
        except (KeyError, AttributeError, TypeError) as error:
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


def _read_history(path: Path) -> LabelHistory:
    if not path.exists():
        return LabelHistory()
    try:
        return LabelHistory.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not say since when labels stand in the configuration ({error!r}); make it anew with `lasagna "
            "labels list PROJECT --json`, or remove it"
        ) from error


def _first_uses(tasks: Iterable[_Task], history: LabelHistory) -> FirstUses:
    uses = FirstUses(history)
    for task in tasks:
        for annotation in task.annotations:
            if "labels" not in annotation and not annotation.get("was_cancelled"):
                uses.add(annotation, task.reading(annotation, history.renamed), task.configs)
    return uses


def _all_classes(config: LabelConfig, tasks: Iterable[_Task]) -> tuple[str, ...]:
    texts = dict.fromkeys(query.text for query in config.classes)
    for task in tasks if config.has_dynamic_labels else ():
        texts |= dict.fromkeys(query.text for image in task.configs for query in image.classes)
    return tuple(texts)


# --- Photos -----------------------------------------------------------------------------------------------------------


def _find_photo(address: str, folders: Sequence[Path], problem: str) -> Path:
    """The file of an address: `/data/upload/3/c2d0f86e-a.png`, `/data/local-files/?d=b/a.png`, or any other address.

    Below each folder, the address's whole path is looked for, then the path without its first folder, and so on, and
    last the bare name; `b/a.png` is never found as `c/a.png`. An upload is also found under the name that it had.
    """
    if not address:
        raise _UnusableError(problem)
    if address.startswith("data:"):
        raise _UnusableError(f"the task names no file as its photo, but {address[:80]!r}")
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


def _record(
    task: _Task, image: TaskImage, path: Path, history: LabelHistory, uses: FirstUses, export: Path
) -> tuple[Record, list[str]]:
    """The record of an image, and what of its annotation was left out."""
    annotation = choose_annotation(task.annotations)
    if image.shared_with:
        raise _UnusableError(
            f"the task shows a list of {image.shared_with + 1} images, and Label Studio does not say on which of them "
            "a region was drawn; use valueList for pages"
        )
    reading = task.reading(annotation, history.renamed)
    regions = reading.of_image[task.images.index(image)]
    if len(regions) > MOST_REGIONS:
        raise _UnusableError(f"the annotation has {len(regions)} regions, the limit is {MOST_REGIONS}")
    if image.config.is_page and not regions and len(task.images) > 1:
        raise _UnusableError("nothing is drawn on this page, and perhaps nobody looked at it")
    size = upright_size(path)
    drawn_on = {region.size for region in regions if region.is_area and region.size}
    if drawn_on and size not in drawn_on:
        height, width = sorted(drawn_on)[0]
        of_photo = f"the photo has {size[1]} x {size[0]}: is it another?"
        raise _UnusableError(f"its regions were drawn on {width} x {height} pixels, but {of_photo}")
    stood = annotation["labels"] if "labels" in annotation else uses.stood(image.config, annotation)
    decided = _decide(regions, reading.elsewhere, image.config, set(stood), size)
    if not decided.classes:
        raise _UnusableError("; ".join(decided.notes) or "no label is known to have stood in the configuration then")
    where = f"{export}: task {task.name_of(image)}"
    told = [query.text for query in image.config.classes if query.objects and query.text in decided.classes]
    record = Record(
        "label_studio",
        task.name_of(image),
        path,
        classes=decided.classes,
        labels=partial(_labels, decided.drawn, decided.unlabelled, size, where),
        size=size,
        objects=partial(_told_apart, decided, tuple(told), size, where) if told else None,
    )
    return record, decided.notes


@dataclass
class _Decided:
    """What an annotation says about one image: classes that it decides about, their regions by index, regions that are
    something, and what was left out."""

    classes: tuple[str, ...]
    drawn: list[tuple[int, Region]]
    unlabelled: list[Region]
    notes: list[str]


def _decide(
    regions: Sequence[Region], elsewhere: Sequence[Region], config: ImageConfig, stood: set[str], size: tuple[int, int]
) -> _Decided:
    texts = {query.name: query.text for query in config.classes}
    classes = list(dict.fromkeys(texts.values()))
    drawn: list[tuple[str, Region]] = []
    unlabelled: list[Region] = []
    unknown_extent: set[str] = set()
    hinted = set(classes) - {texts[label] for label in stood & texts.keys()}
    not_offered = set(hinted)
    notes: list[str] = []
    for region in regions:
        of = [texts[label.value] for label in region.labels if label.value in texts]
        has_area, problem = _look(region, size)
        if problem and (of or not region.is_labelled):
            notes.append(problem)
        if region.unknown_labels:
            stale = ", ".join(map(repr, region.unknown_labels))
            notes.append(
                f"{region.name} has the label {stale}, which the labelling configuration no longer has; if it was "
                "renamed: lasagna labels rename"
            )
        if not region.is_labelled:
            hinted |= set(classes)
            notes.append(f"{region.name} has no label, so that no class is absent here")
            unlabelled += [region] if has_area else []
        elif has_area:
            drawn += [(text, region) for text in of]
        elif problem:
            unknown_extent |= set(of)
        else:
            hinted |= set(of)
            notes += [f"{region.name} has no area"] if of else []
    for region in elsewhere:
        of = [texts[label.value] for label in region.labels if label.value in texts]
        hinted |= set(of) if region.is_labelled else set(classes)
        notes.append(f"{region.name} lies on {region.where!r}, which the task does not show")
    undecided = (hinted - {text for text, _ in drawn}) | unknown_extent
    if not_offered & undecided:
        names = ", ".join(sorted(not_offered & undecided))
        notes.append(f"not known to have been a label when this was annotated: {names}")
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"and {len(notes) - _MOST_NOTES} more"]
    kept = [text for text in classes if text not in undecided]
    place = {text: index for index, text in enumerate(kept)}
    return _Decided(tuple(kept), [(place[text], r) for text, r in drawn if text in place], unlabelled, notes)


def _look(region: Region, size: tuple[int, int]) -> tuple[bool, str]:
    """Whether a region covers a pixel, and why that cannot be told. A point covers none."""
    if region.kind == "keypoint":
        return False, ""
    try:
        return has_area(region, size), ""
    except DataError as reason:
        return False, str(reason)


def _told_apart(decided: _Decided, names: Sequence[str], size: tuple[int, int], where: str) -> dict[str, Objects]:
    """The objects of classes, one for each region; see `Record.objects`."""
    pairs = [(decided.classes[i], region) for i, region in decided.drawn if decided.classes[i] in names]
    try:
        found = dict(regions_to_objects(pairs, size))
    except DataError as error:
        raise DataError(f"{where}, {error}; correct the task and export again") from error
    return {name: found.get(name, Objects.of_masks([], [], size)) for name in names}


def _labels(
    drawn: Sequence[tuple[int, Region]], unlabelled: Sequence[Region], size: tuple[int, int], where: str
) -> LabelMap:
    try:
        labels = stack_masks(size, regions_to_masks(drawn, size))
        for region in unlabelled:
            void = region_to_mask(region, size) & (labels == OTHER).all(axis=0)
            labels[:, void] = UNKNOWN
    except DataError as error:
        raise DataError(f"{where}, {error}; correct the task and export again") from error
    return labels
