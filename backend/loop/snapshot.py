"""A project's corrections, frozen: what a fine-tune trains on and is judged by.

    REGISTRY/snapshots/P/ID/train.json         exports that training's reader `label_studio` takes as two splits: an
    REGISTRY/snapshots/P/ID/holdout.json       entry for each image of a task, with one annotation, without who and when
    REGISTRY/snapshots/P/ID/label_config.xml
    REGISTRY/snapshots/P/ID/labels.json        labels that were renamed, where there are any
    REGISTRY/snapshots/P/ID/images/HASH.png    each photo once, under the hash of its bytes
    REGISTRY/snapshots/P/ID/split.json         photo -> what it looks like, its group and side (`backend.loop.holdout`)
    REGISTRY/snapshots/P/sides.json            the same for every photo that the project ever had
    REGISTRY/snapshots/P/seen.json             which annotation of which task the newest snapshot has
    REGISTRY/snapshots/P/dangers.json          what the process is busy with, and died of (`backend.loop.dangers`)

What always holds: a snapshot is there whole or not at all, and never changes; the same corrections have the same ID. An
annotation counts as for any export (`training.data.sources.label_studio`): submitted, not skipped, the ground truth
before the newest; and it carries the labels that could be chosen when it was made (`lasagna.labels.history`). Photos of
one task may be on different sides, since a side belongs to a photo. What cannot be used (a broken photo, a damaged
mask, a task that the process died of) is left out and named in the result; Label Studio being gone ends the attempt
instead, since a snapshot with holes must not be taken for the project.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.effort.disagreement import disagreement, in_words
from backend.loop.dangers import Dangers
from backend.loop.holdout import PhotoPlace, Sides, difference_hash
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.images import ImageLimits, fetch_image, task_data
from lasagna.errors import DataError, ImageError
from lasagna.files import write_atomically
from lasagna.formats.annotations import choose_annotation
from lasagna.formats.first_uses import FirstUses
from lasagna.formats.regions import read_regions
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.labels.history import LabelHistory
from lasagna.labels.parts import ImageConfig
from lasagna.masks.image import image_format, load_image
from training.data.sources.label_studio import HISTORY, LabelStudioExport

_REGION = ("id", "from_name", "to_name", "type", "value", "original_width", "original_height", "image_rotation")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, and what was left out of it.

    Attributes:
        id: Of its content.
        folder: Where it lies.
        classes: What the model reads for each label.
        train, holdout: Number of tasks on each side.
        neither: Tasks whose photo looks like photos of both sides.
        skipped: Task (of several images with the image, "7:left") -> why it cannot be used.
        left_out: The same -> what of it cannot be used, of those that are not skipped.
        disagreements: Task -> classes that some of its annotations have and others have not, in words.
    """

    id: str
    folder: Path
    classes: tuple[str, ...]
    train: int
    holdout: int
    neither: tuple[str, ...] = ()
    skipped: Mapping[str, str] | None = None
    left_out: Mapping[str, list[str]] | None = None
    disagreements: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        noted = {name: dict(getattr(self, name) or {}) for name in ("skipped", "left_out", "disagreements")}
        return {**asdict(self), "folder": str(self.folder), **noted}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Snapshot":
        lists = {name: tuple(values[name]) for name in ("classes", "neither")}
        return cls(**{**values, **lists, "folder": Path(values["folder"])})


@dataclass(frozen=True)
class _Seen:
    """The annotation that a snapshot has of a task; `photos`: address of each image -> the file's name."""

    annotation: int
    changed: str
    task_changed: str
    photos: Mapping[str, str]


@dataclass
class _Entry:
    """One image of a task, for the export of a snapshot.

    Attributes:
        exported: The entry.
        image: What its labels are.
        annotation: As Label Studio has it.
        looks: What the photo looks like (`difference_hash`).
    """

    exported: dict[str, Any]
    image: ImageConfig
    annotation: dict[str, Any]
    looks: str


@dataclass
class _Fetched:
    """One task: what is seen of it, its images that can be used, and why others cannot."""

    number: int
    seen: _Seen
    entries: list[_Entry]
    problems: dict[str, str]
    images: list[ImageConfig]
    annotations: list[dict[str, Any]]


class Snapshots:
    """The snapshots of one project.

    Args:
        folder: Where they lie, and nothing else.
        label_studio: The project's.
        project: Its number there.
        limits: On fetching a photo.
        most: What decoding a photo may take: `max_pixels` and `max_memory` of `load_image`.
        known_as: The address that Label Studio calls itself, where that is another than ours for it.
        history: When which labels stood in the configuration.
    """

    def __init__(
        self,
        folder: Path,
        label_studio: LabelStudio,
        project: int,
        limits: ImageLimits,
        most: Mapping[str, int],
        known_as: str = "",
        history: LabelHistory | None = None,
    ) -> None:
        self._folder, self._label_studio, self._project = folder, label_studio, project
        self._limits, self._most, self._known_as = limits, most, known_as
        self._disagreements: dict[str, str] = {}
        self._history = history or LabelHistory()

    def changed(self) -> set[int]:
        """The tasks whose annotation that counts is another than in the newest snapshot, is new, or is gone.

        Raises:
            LabelStudioError: Label Studio cannot be reached.
        """
        _, seen = self._seen()
        now = self._label_studio.annotated(self._project)
        looked_at = [task for task, at in now.items() if task not in seen or seen[task].task_changed != at]
        found = seen.keys() - now.keys()
        for task in self._label_studio.export(self._project, looked_at):
            before, chosen = seen.get(int(task["id"])), choose_annotation(task["annotations"])
            if before is None or (before.annotation, before.changed) != _identity(chosen):
                found.add(int(task["id"]))
        return found

    def take(self, *, divided: bool = True) -> Snapshot:
        """Freezes the project as it is now.

        Args:
            divided: Whether photos are held out; else all are on the side "train", of any number, and none is placed.

        Raises:
            LabelStudioError: Label Studio cannot be reached.
            ConfigError: Its labelling configuration cannot be used.
            DataError: There are too few corrections that can be used.
        """
        xml = str(self._label_studio.project(self._project)["label_config"])
        config = parse_label_config(xml)
        beside = self._folder / "unfinished"
        dangers = Dangers(self._folder / "dangers.json")
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "images").mkdir(parents=True)
        try:
            write_atomically(beside / "label_config.xml", xml)
            if self._history.renamed:
                renamed = LabelHistory(renamed=self._history.renamed)
                write_atomically(beside / HISTORY, json.dumps(renamed.as_dict()))
            skipped: dict[str, str] = {}
            self._disagreements = {}
            seen: dict[int, _Seen] = {}
            entries: list[_Entry] = []
            uses = FirstUses(self._history)
            for task in self._fetched(config, beside / "images", dangers):
                seen[task.number] = task.seen
                skipped |= task.problems
                entries += task.entries
                for annotation in task.annotations:
                    reading = read_regions(annotation.get("result") or (), task.images, self._history.renamed)
                    uses.add(annotation, reading, task.images)
            if not entries:
                raise DataError(_nothing_to_use(skipped))
            for entry in entries:
                entry.exported["annotations"][0]["labels"] = uses.stood(entry.image, entry.annotation)
            looks = {_hash_of(entry.exported): entry.looks for entry in entries}
            usable, source, broken = _check(beside, [entry.exported for entry in entries], dangers)
            skipped |= broken
            photos = {_hash_of(t): looks[_hash_of(t)] for t in usable}
            together = {photo: PhotoPlace(look, photo, "train") for photo, look in photos.items()}
            places = Sides(self._folder / "sides.json").divide(photos) if divided else together
            snapshot = self._finish(beside, usable, source.classes, places, skipped, source.left_out)
            kept = {str(number): asdict(was) for number, was in sorted(seen.items())}
            dangers.survived()
            write_atomically(self._folder / "seen.json", json.dumps({"id": snapshot.id, "tasks": kept}))
            return snapshot
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _seen(self) -> tuple[Path | None, dict[int, _Seen]]:
        """The newest snapshot's folder, and what it has. A file that cannot be read is as good as none."""
        try:
            found = json.loads((self._folder / "seen.json").read_text(encoding="utf-8"))
            return self._folder / found["id"], {int(task): _Seen(**was) for task, was in found["tasks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, {}

    def _fetched(self, config: LabelConfig, images: Path, dangers: Dangers) -> Iterator[_Fetched]:
        """Every annotated task with the photos of its images."""
        changed = self._label_studio.annotated(self._project)
        before, seen = self._seen()
        writing = threading.Lock()  # two tasks may have the same photo

        def fetch(task: dict[str, Any]) -> _Fetched:
            number = int(task["id"])
            chosen = choose_annotation(task["annotations"])
            known = seen[number].photos if number in seen else {}
            result = [{key: region[key] for key in _REGION if key in region} for region in chosen.get("result") or ()]
            data = task_data(task)
            read = config.data_read(data)
            shown = config.of_task(data)
            photos: dict[str, str] = {}
            entries, problems = [], {}
            for image in shown:
                name = str(number) if len(shown) == 1 else f"{number}:{image.config.name}"
                try:
                    if problem := image.problem or dangers.reason(name):
                        raise ImageError(problem)
                    bytes_ = self._photo(image.address, number, known.get(image.address), before)
                    with dangers.busy_with(name):
                        opened = load_image(bytes_, name=image.address, max_bytes=self._limits.max_bytes, **self._most)
                    looks = difference_hash(opened)
                    with writing:
                        photo = photos[image.address] = _keep(bytes_, images, before)
                except ImageError as reason:
                    problems[name] = str(reason)
                    continue
                exported = {
                    "id": number if len(shown) == 1 else name,
                    "data": _without_content(read),
                    "snapshot": {
                        "photo": photo,
                        "image": image.config.image_name,
                        "page": image.config.item_index,
                    },
                    "annotations": [{"id": number, "result": result}],
                }
                entries.append(_Entry(exported, image.config, chosen, looks))
            addresses = {_short(address): photo for address, photo in photos.items()}
            was = _Seen(*_identity(chosen), changed[number], addresses)
            finished = [each for each in task["annotations"] if not each.get("was_cancelled")]
            return _Fetched(number, was, entries, problems, [image.config for image in shown], finished)

        with ThreadPoolExecutor(1 if dangers.one_by_one else 8, thread_name_prefix="fetch") as pool:
            page: list[dict[str, Any]] = []
            for task in self._label_studio.export(self._project, list(changed)):
                if found := disagreement(task, config, self._history.renamed):
                    self._disagreements[str(task["id"])] = in_words(found)
                if any(not annotation.get("was_cancelled") for annotation in task["annotations"]):
                    page.append(task)  # else it was skipped or deleted a moment ago
                if len(page) == 32:
                    yield from pool.map(fetch, page)
                    page = []
            yield from pool.map(fetch, page)

    def _photo(self, address: str, task: int, known: str | None, before: Path | None) -> bytes:
        old = before / "images" / known if before and known and "/data/upload/" in address else None
        # an upload never changes under its address
        return old.read_bytes() if old and old.exists() else self._fetch(address, task)

    def _fetch(self, address: str, task: int) -> bytes:
        """A photo's bytes. Where Label Studio answers but for ever fails on this photo, that is the photo's fault."""
        for pause in (0.5, 2.0, None):
            try:
                return fetch_image(self._label_studio, address, task, self._limits, self._known_as)
            except LabelStudioError as error:
                if pause is None:
                    self._label_studio.check()
                    raise ImageError(str(error)) from error
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _finish(
        self,
        beside: Path,
        tasks: list[dict[str, Any]],
        classes: tuple[str, ...],
        places: Mapping[str, PhotoPlace],
        skipped: Mapping[str, str],
        left_out: Mapping[str, list[str]],
    ) -> Snapshot:
        sides: dict[str, list[dict[str, Any]]] = {"train": [], "holdout": [], "neither": []}
        for task in sorted(tasks, key=lambda task: (int(str(task["id"]).split(":")[0]), str(task["id"]))):
            sides[places[_hash_of(task)].side].append(task)
        for name in ("train", "holdout"):
            write_atomically(beside / f"{name}.json", json.dumps(sides[name]))
        split = {photo: asdict(place) for photo, place in sorted(places.items())}
        write_atomically(beside / "split.json", json.dumps(split, indent=1))
        used = {str(task["snapshot"]["photo"]) for side in ("train", "holdout") for task in sides[side]}
        for path in (beside / "images").iterdir():
            if path.name not in used:
                path.unlink()
        id = _content(beside)
        folder = self._folder / id
        if not folder.exists():
            beside.rename(folder)
        neither = tuple(str(task["id"]) for task in sides["neither"])
        counts = (len(sides["train"]), len(sides["holdout"]))
        disagreed = dict(self._disagreements)
        return Snapshot(id, folder, classes, *counts, neither, dict(skipped), dict(left_out), disagreed)


def _check(
    beside: Path, tasks: list[dict[str, Any]], dangers: Dangers
) -> tuple[list[dict[str, Any]], LabelStudioExport, dict[str, str]]:
    """The entries that training's reader takes, with every mask readable; the reader; why others are left out."""
    write_atomically(beside / "all.json", json.dumps(tasks))
    source = LabelStudioExport(beside, "all")
    (beside / "all.json").unlink()
    skipped, usable = dict(source.skipped), set()
    for position in range(len(source)):
        record = source[position]
        try:
            with dangers.busy_with(record.image_id):
                record.read()
            usable.add(record.image_id)
        except DataError as reason:
            skipped[record.image_id] = str(reason).removeprefix(f"{beside / 'all.json'}: ")
    if not usable:
        raise DataError(_nothing_to_use(skipped))
    return [task for task in tasks if str(task["id"]) in usable], source, skipped


def _nothing_to_use(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return "nobody has submitted an annotation in this project yet; correct some tasks first"
    shown = "".join(f"\n  task {task}: {reason}" for task, reason in list(skipped.items())[:5])
    return f"none of {len(skipped)} annotated tasks can be used{shown}"


def _keep(data: bytes, images: Path, before: Path | None) -> str:
    """Writes a photo under its hash, as a link to the same file of an older snapshot where there is one."""
    name = f"{hashlib.sha256(data).hexdigest()}.{image_format(data)}"
    path = images / name
    if before is not None and not path.exists():
        with suppress(OSError):  # not there, or a file system without links
            os.link(before / "images" / name, path)
    if not path.exists():
        write_atomically(path, data)
    return name


def _identity(annotation: Mapping[str, Any]) -> tuple[int, str]:
    return int(annotation.get("id") or 0), str(annotation.get("updated_at") or "")


def _short(address: str) -> str:
    """An address as it is kept: of a `data:` URI only that it is one, since it is fetched from itself."""
    return "data:" if address[:5].lower() == "data:" else address


def _without_content(value: Any) -> Any:
    """A task's data without images that it holds itself."""
    if isinstance(value, Mapping):
        return {key: _without_content(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_content(inner) for inner in value]
    return _short(value) if isinstance(value, str) else value


def _hash_of(task: Mapping[str, Any]) -> str:
    return str(task["snapshot"]["photo"]).split(".")[0]


def _content(folder: Path, names: Iterable[str] = ("label_config.xml", HISTORY, "train.json", "holdout.json")) -> str:
    digest = hashlib.sha256()
    for name in names:  # photos are named by their content
        if name != HISTORY or (folder / name).exists():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
