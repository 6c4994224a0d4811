"""A project's corrections, frozen: what a fine-tune trains on and is judged by.

    REGISTRY/snapshots/P/ID/train.json         exports that training's reader `label_studio` takes as two splits: one
    REGISTRY/snapshots/P/ID/holdout.json       annotation a task, without who and when
    REGISTRY/snapshots/P/ID/label_config.xml
    REGISTRY/snapshots/P/ID/images/HASH.png    each photo once, under the hash of its bytes
    REGISTRY/snapshots/P/ID/split.json         photo -> what it looks like, its group and side (`backend.loop.holdout`)
    REGISTRY/snapshots/P/sides.json            the same for every photo that the project ever had
    REGISTRY/snapshots/P/seen.json             which annotation of which task the newest snapshot has
    REGISTRY/snapshots/P/dangers.json          what the process is busy with, and died of (`backend.loop.dangers`)

What always holds: a snapshot is there whole or not at all, and never changes; the same corrections have the same ID. An
annotation counts as for any export (`training.data.sources.label_studio`): submitted, not skipped, the ground truth
before the newest. What cannot be used (a broken photo, a damaged mask, a task that the process died of) is left out and
named in the result; Label Studio being gone ends the attempt instead, since a snapshot with holes must not be taken for
the project.
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
from backend.studio.images import ImageLimits, fetch_image, image_address
from lasagna.errors import DataError, ImageError
from lasagna.files import write_atomically
from lasagna.formats.annotations import choose_annotation
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.image import image_format, load_image
from training.data.sources.label_studio import LabelStudioExport

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
        skipped: Task -> why it cannot be used.
        disagreements: Task -> classes that some of its annotations have and others have not, in words.
    """

    id: str
    folder: Path
    classes: tuple[str, ...]
    train: int
    holdout: int
    neither: tuple[str, ...] = ()
    skipped: Mapping[str, str] | None = None
    disagreements: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        noted = {"skipped": dict(self.skipped or {}), "disagreements": dict(self.disagreements or {})}
        return {**asdict(self), "folder": str(self.folder), **noted}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Snapshot":
        lists = {name: tuple(values[name]) for name in ("classes", "neither")}
        return cls(**{**values, **lists, "folder": Path(values["folder"])})


@dataclass(frozen=True)
class _Seen:
    """The annotation that a snapshot has of a task: `photo` is the file's name, "" where it cannot be used."""

    annotation: int
    changed: str
    task_changed: str
    address: str = ""
    photo: str = ""


class Snapshots:
    """The snapshots of one project.

    Args:
        folder: Theirs alone.
        label_studio: The project's.
        project: Its number there.
        limits: On fetching a photo.
        most: What decoding a photo may take: `max_pixels` and `max_memory` of `load_image`.
        known_as: The address that Label Studio calls itself, where that is another than ours for it.
    """

    def __init__(
        self,
        folder: Path,
        label_studio: LabelStudio,
        project: int,
        limits: ImageLimits,
        most: Mapping[str, int],
        known_as: str = "",
    ) -> None:
        self._folder, self._label_studio, self._project = folder, label_studio, project
        self._limits, self._most, self._known_as = limits, most, known_as
        self._disagreements: dict[str, str] = {}

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

    def take(self) -> Snapshot:
        """Freezes the project as it is now.

        Raises:
            LabelStudioError: Label Studio cannot be reached.
            ConfigError: Its labelling configuration cannot be used.
            DataError: There are too few corrections that can be used.
        """
        config = str(self._label_studio.project(self._project)["label_config"])
        variable = parse_label_config(config).image_variable
        beside = self._folder / "unfinished"
        dangers = Dangers(self._folder / "dangers.json")
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "images").mkdir(parents=True)
        try:
            write_atomically(beside / "label_config.xml", config)
            skipped: dict[str, str] = {}
            self._disagreements = {}
            seen: dict[int, _Seen] = {}
            tasks, looks = [], {}
            for number, was, outcome in self._fetched(variable, beside / "images", dangers):
                seen[number] = was
                if isinstance(outcome, str):
                    skipped[str(number)] = outcome
                    continue
                task, looks_like = outcome
                tasks.append(task)
                looks[_hash_of(task)] = looks_like
            if not tasks:
                raise DataError(_nothing_to_use(skipped))
            usable, classes, broken = _check(beside, tasks, dangers)
            skipped |= broken
            places = Sides(self._folder / "sides.json").divide({_hash_of(t): looks[_hash_of(t)] for t in usable})
            snapshot = self._finish(beside, usable, classes, places, skipped)
            kept = {str(task): asdict(was) for task, was in sorted(seen.items())}
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

    def _fetched(
        self, variable: str, images: Path, dangers: Dangers
    ) -> Iterator[tuple[int, _Seen, str | tuple[dict[str, Any], str]]]:
        """Every annotated task: its number, what is seen of it, and either why it cannot be used or (the task with its
        photo's file as data, what the photo looks like)."""
        changed = self._label_studio.annotated(self._project)
        before, seen = self._seen()
        writing = threading.Lock()  # two tasks may have the same photo

        def fetch(task: dict[str, Any]) -> tuple[int, _Seen, str | tuple[dict[str, Any], str]]:
            number = int(task["id"])
            chosen = choose_annotation(task["annotations"])
            was = _Seen(*_identity(chosen), changed[number])
            if reason := dangers.reason(str(number)):
                return number, was, reason
            try:
                address = image_address(task, variable)
                known = seen.get(number)
                name = known.photo if known and known.address == address and "/data/upload/" in address else ""
                old = before / "images" / name if before and name else None
                # an upload never changes under its address
                data = old.read_bytes() if old and old.exists() else self._fetch(address, number)
                with dangers.busy_with(str(number)):
                    photo = load_image(data, name=address, max_bytes=self._limits.max_bytes, **self._most)
                looks = difference_hash(photo)
                with writing:
                    name = _keep(data, images, before)
            except ImageError as reason:
                return number, was, str(reason)
            result = [{key: region[key] for key in _REGION if key in region} for region in chosen.get("result") or ()]
            annotation = {"id": number, "result": result}
            reduced = {"id": number, "data": {variable: name}, "annotations": [annotation]}
            return number, _Seen(was.annotation, was.changed, was.task_changed, address, name), (reduced, looks)

        with ThreadPoolExecutor(1 if dangers.one_by_one else 8, thread_name_prefix="fetch") as pool:
            page: list[dict[str, Any]] = []
            for task in self._label_studio.export(self._project, list(changed)):
                if found := disagreement(task):
                    self._disagreements[str(task["id"])] = in_words(found)
                if any(not annotation.get("was_cancelled") for annotation in task["annotations"]):
                    page.append(task)  # else it was skipped or deleted a moment ago
                if len(page) == 32:
                    yield from pool.map(fetch, page)
                    page = []
            yield from pool.map(fetch, page)

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
    ) -> Snapshot:
        sides: dict[str, list[dict[str, Any]]] = {"train": [], "holdout": [], "neither": []}
        for task in sorted(tasks, key=lambda task: task["id"]):
            sides[places[_hash_of(task)].side].append(task)
        for name in ("train", "holdout"):
            write_atomically(beside / f"{name}.json", json.dumps(sides[name]))
        split = {photo: asdict(place) for photo, place in sorted(places.items())}
        write_atomically(beside / "split.json", json.dumps(split, indent=1))
        used = {_name_of(task) for side in ("train", "holdout") for task in sides[side]}
        for path in (beside / "images").iterdir():
            if path.name not in used:
                path.unlink()
        id = _content(beside)
        folder = self._folder / id
        if not folder.exists():
            beside.rename(folder)
        neither = tuple(str(task["id"]) for task in sides["neither"])
        disagreed = dict(self._disagreements)
        return Snapshot(
            id, folder, classes, len(sides["train"]), len(sides["holdout"]), neither, dict(skipped), disagreed
        )


def _check(
    beside: Path, tasks: list[dict[str, Any]], dangers: Dangers
) -> tuple[list[dict[str, Any]], tuple[str, ...], dict[str, str]]:
    """The tasks that training's reader takes, with every mask readable; the classes; why others are left out."""
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
    return [task for task in tasks if str(task["id"]) in usable], source.classes, skipped


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


def _name_of(task: Mapping[str, Any]) -> str:
    [name] = task["data"].values()
    return str(name)


def _hash_of(task: Mapping[str, Any]) -> str:
    return _name_of(task).split(".")[0]


def _content(folder: Path, names: Iterable[str] = ("label_config.xml", "train.json", "holdout.json")) -> str:
    digest = hashlib.sha256()
    for name in names:  # photos are named by their content
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return digest.hexdigest()[:16]
