"""COCO's instance and panoptic annotations: 80 things, or 80 things and 53 kinds of stuff.

    annotations/instances_{train,val}2017.json    {images, annotations: [{segmentation, iscrowd, ...}], categories}
    annotations/panoptic_{train,val}2017.json     {images, annotations: [{file_name, segments_info}], categories}
    annotations/panoptic_{train,val}2017/ID.png   8-bit RGB: segment id = R + 256 G + 65536 B, 0 is void
    {train,val}2017/ID.jpg

Source: cocodataset.org, "Data format". Any other data set in this format works as well: SPLIT is what stands between
"instances_" and ".json", and names the folder of the photos.

What always holds: every category is decided in every photo, except one that a photo shows only as a crowd (a region of
many that were not outlined one by one): its pixels are void, so it is neither present nor absent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN, LabelMap, Record, require_files, stack_masks
from training.data.sources.annotations import Mask, read_json, segmentation_to_mask

_ENDINGS = ("-merged", "-other", "-stuff")


def plain_name(name: str) -> str:
    """A category of COCO as LaSagnA's published code asks for it: "wall-other-merged" is "wall"."""
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


class _Coco(ABC):
    """What both kinds share: the file's photos and categories.

    Attributes:
        classes: The categories in the file's order.
    """

    kind: str
    _name: Callable[[str], str] = staticmethod(plain_name)

    def __init__(self, root: Path, split: str) -> None:
        """Reads the annotations of a split.

        Args:
            root: The folder of `annotations` and the photos.
            split: "train2017", "val2017", ...; "train" and "val" mean those of 2017 where there is no file of that
                name.

        Raises:
            DataError: Files are missing or damaged, or there is no such split.
        """
        what = f"COCO's {self.kind} annotations (annotations/{self.kind}_SPLIT.json and the photos in SPLIT/)"
        path = self._path(root, split)
        own = path.stem.removeprefix(f"{self.kind}_")
        self._read(path, what, root, lambda name: self._photo(root, own, name))

    def _read(self, path: Path, what: str, root: Path, photo: Callable[[str], Path]) -> None:
        """Reads a file of annotations.

        Args:
            what, root: What it is of, for messages.
            photo: The file of a `file_name`.
        """
        content = read_json(path)
        self._json, self._categories, self._masks = path, {}, path.with_suffix("")
        records: list[Record] = []
        try:
            categories = [(c["id"], self._name(c["name"])) for c in content["categories"]]
            self.classes: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in categories))
            self._categories = {key: self.classes.index(name) for key, name in categories}
            grouped: dict[Any, list[dict[str, Any]]] = {}
            for annotation in content["annotations"]:
                grouped.setdefault(annotation["image_id"], []).append(annotation)
            for image in content["images"]:
                found = grouped.get(image["id"], [])
                records.append(self._record(photo(image["file_name"]), image, found))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{path}: not in COCO's {self.kind} format ({error!r}); download it again") from error
        if not records:
            raise DataError(f"{path}: lists no photo")
        self._records = records
        require_files(what, root, [r.image_path for r in records if r.image_path] + self._needed(content))

    def _photo(self, root: Path, own: str, file_name: str) -> Path:
        """Where a photo is, by the split's own name and the photo's."""
        return root / own / file_name

    def _path(self, root: Path, split: str) -> Path:
        for name in (split, f"{split}2017"):
            path = root / "annotations" / f"{self.kind}_{name}.json"
            if path.exists():
                return path
        known = sorted(p.stem.removeprefix(f"{self.kind}_") for p in root.glob(f"annotations/{self.kind}_*.json"))
        raise DataError(
            f"{root}: no split {split!r}: looked for annotations/{self.kind}_{split}.json and "
            f"annotations/{self.kind}_{split}2017.json; there are {', '.join(known) or 'none'}"
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    @abstractmethod
    def _record(self, photo: Path, image: dict[str, Any], annotations: list[dict[str, Any]]) -> Record:
        """One photo's record."""

    def _needed(self, content: dict[str, Any]) -> list[Path]:
        return []

    def _decided(self, segments: list[dict[str, Any]]) -> dict[int, int]:
        """Category id -> index into the record's classes, of those that the photo decides."""
        outlined = {self._categories[s["category_id"]] for s in segments if not s.get("iscrowd")}
        crowds = {self._categories[s["category_id"]] for s in segments if s.get("iscrowd")} - outlined
        kept = [i for i in range(len(self.classes)) if i not in crowds]
        return {category: kept.index(i) for category, i in self._categories.items() if i not in crowds}

    def _names(self, decided: dict[int, int]) -> tuple[str, ...]:
        """The record's classes: all of the set, as one shared tuple, where there is no crowd."""
        if len(decided) == len(self._categories):
            return self.classes
        kept = {self._categories[category] for category in decided}
        return tuple(name for i, name in enumerate(self.classes) if i in kept)


class CocoInstances(_Coco):
    """Instances; where those of several categories overlap, they lie in layers."""

    kind = "instances"
    source = "coco_instances"

    def _record(self, photo: Path, image: dict[str, Any], annotations: list[dict[str, Any]]) -> Record:
        decided = self._decided(annotations)
        size = (int(image["height"]), int(image["width"]))
        parts = [(decided[a["category_id"]], a["segmentation"]) for a in annotations if not a.get("iscrowd")]
        crowds = [a["segmentation"] for a in annotations if a.get("iscrowd")]
        return Record(
            self.source,
            Path(image["file_name"]).with_suffix("").as_posix(),
            photo,
            classes=self._names(decided),
            labels=partial(_instance_labels, parts, crowds, size, f"{self._json}: photo {image['id']}"),
            size=size,
        )


class CocoFile(CocoInstances):
    """One file of instances, wherever it lies, whose categories are called as they are written.

    Photos are found by their `file_name`, or by its last part, below one of the folders.
    """

    _name = staticmethod(str)

    def __init__(self, path: Path, photos: Sequence[Path]) -> None:
        """Raises DataError where the file is damaged, or photos are not found."""

        def find(name: str) -> Path:
            places = [folder / part for folder in photos for part in (name, Path(name).name)]
            return next((place for place in places if place.is_file()), places[0])

        self._read(path, f"the photos of {path.name}, looked for in {', '.join(map(str, photos))}", path.parent, find)


def _instance_labels(parts: list[tuple[int, Any]], crowds: list[Any], size: tuple[int, int], where: str) -> LabelMap:
    try:
        masks: list[tuple[int, Mask]] = [(index, segmentation_to_mask(part, size)) for index, part in parts]
        labels = stack_masks(size, masks)
        for crowd in crowds:
            # What was outlined inside a crowd (a dog among people) stays.
            labels[0][segmentation_to_mask(crowd, size) & (labels == OTHER).all(0)] = UNKNOWN
    except DataError as error:
        raise DataError(f"{where}: {error}; download the file again") from error
    return labels


class CocoPanoptic(_Coco):
    """Panoptic segments: every pixel has one, or is void."""

    kind = "panoptic"

    def _record(self, photo: Path, image: dict[str, Any], annotations: list[dict[str, Any]]) -> Record:
        if len(annotations) != 1:
            raise DataError(f"{self._json}: photo {image['id']} has {len(annotations)} annotations; there is one each")
        annotation = annotations[0]
        segments = annotation["segments_info"]
        decided = self._decided(segments)
        ids = {int(s["id"]): UNKNOWN if s.get("iscrowd") else decided[s["category_id"]] for s in segments}
        size = (int(image["height"]), int(image["width"]))
        return Record(
            "coco_panoptic",
            Path(image["file_name"]).with_suffix("").as_posix(),
            photo,
            classes=self._names(decided),
            labels=partial(_panoptic_labels, self._masks / annotation["file_name"], ids, size),
            size=size,
        )

    def _needed(self, content: dict[str, Any]) -> list[Path]:
        return [self._masks / annotation["file_name"] for annotation in content["annotations"]]


def _panoptic_labels(path: Path, segments: dict[int, int], size: tuple[int, int]) -> LabelMap:
    try:
        with Image.open(path) as image:
            colours = np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: the mask cannot be read ({error}); copy or download it again") from error
    if colours.shape != (*size, 3):
        raise DataError(f"{path}: a panoptic mask is RGB of the photo's {size[1]} x {size[0]}, not {colours.shape}")
    ids, inverse = np.unique(colours @ (1, 256, 65536), return_inverse=True)
    strange = [int(i) for i in ids if i and int(i) not in segments]
    if strange:
        raise DataError(f"{path}: the segment {strange[0]} is not in segments_info; take both from one download")
    values = np.array([segments.get(int(i), UNKNOWN) for i in ids], np.int16)
    return values[inverse].reshape(1, *size)
