"""Open Images V6, instance masks of 350 classes.

    class-descriptions-boxable.csv                        LabelName,DisplayName (older downloads have no header)
    classes-segmentation.txt                              LabelName, one per line
    SPLIT-annotations-object-segmentation.csv             MaskPath,ImageID,LabelName,BoxID,BoxXMin,...,Clicks
    SPLIT-annotations-human-imagelabels-boxable.csv       ImageID,Source,LabelName,Confidence; optional
    SPLIT-masks/.../MaskPath                              PNG, 0 is not the object; often of another size than the photo
    SPLIT/.../ID.jpg or folder_SPLIT/.../ID.jpg           the photos

Source: the download page of Open Images V6. The lists may also lie in `annotations/`. Photos and masks may lie in
sub-folders of any depth, as unpacked or as sorted by LaSagnA's code.

What always holds: a photo's classes are those that it has masks of, and, with the image-level labels, those that a
person found absent (Confidence 0). Nothing is said of any other class: the set is not annotated exhaustively, and a
class found present but without a mask is left out. Value i of the label map is the mask of class i of the record,
whatever the order in the file.
"""

import csv
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lasagna.errors import DataError
from training.data.records import LabelMap, Record, require_files, stack_masks
from training.data.sources.annotations import Mask, upright_size
from training.data.sources.label_images import first_folder, published_split, read_label_image

_WHAT = "Open Images V6 (masks, their CSV, class-descriptions-boxable.csv and classes-segmentation.txt)"


class OpenImages:
    """One split: the photos that have a mask.

    Attributes:
        classes: Display names, in lower case, of classes-segmentation.txt.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Reads the lists and finds the files.

        Args:
            root: Folder of the data set.
            split: "train", "val" (validation) or "test".

        Raises:
            DataError: Files are missing or damaged, or there is no such split.
        """
        own = published_split("Open Images", split, {"train": "train", "val": "validation", "test": "test"})
        lists = root / "annotations" if (root / "annotations").is_dir() else root
        names, classes = lists / "class-descriptions-boxable.csv", lists / "classes-segmentation.txt"
        masks = lists / f"{own}-annotations-object-segmentation.csv"
        require_files(_WHAT, root, [names, classes, masks])
        display = {row[0]: row[1].strip().lower() for row in _rows(names, 2)}
        labels = classes.read_text().split()
        unnamed = [label for label in labels if label not in display]
        if unnamed:
            raise DataError(f"{classes}: {unnamed[0]} has no name in {names.name}; take both from one version")
        self.classes: tuple[str, ...] = tuple(dict.fromkeys(display[label] for label in labels))
        index = {label: self.classes.index(display[label]) for label in labels}

        drawn: dict[str, list[tuple[int, str]]] = {}
        for path, image_id, label in _columns(masks, "MaskPath", "ImageID", "LabelName"):
            if label not in index:
                raise DataError(f"{masks}: {label} is not in {classes.name}; take both from one version")
            drawn.setdefault(image_id, []).append((index[label], path))
        absent: dict[str, set[int]] = {}
        verified = lists / f"{own}-annotations-human-imagelabels-boxable.csv"
        if verified.exists():
            for image_id, label, confidence in _columns(verified, "ImageID", "LabelName", "Confidence"):
                if label in index and image_id in drawn and float(confidence) == 0:
                    absent.setdefault(image_id, set()).add(index[label])

        photos = _files(first_folder(_WHAT, root, [own, f"folder_{own}"]))
        files = _files(first_folder(_WHAT, root, [f"{own}-masks"]))
        lacking = [f"{image_id}.jpg" for image_id in drawn if f"{image_id}.jpg" not in photos]
        lacking += [path for parts in drawn.values() for _, path in parts if path not in files]
        if lacking:
            raise DataError(
                f"{root}: {len(lacking)} files that {masks.name} names are not below {own}/ and {own}-masks/: "
                f"{', '.join(lacking[:5])}; unpack all parts of the download"
            )
        self._records = [
            self._record(photos[f"{image_id}.jpg"], image_id, parts, absent.get(image_id, set()), files)
            for image_id, parts in drawn.items()
        ]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def _record(
        self, folder: str, image_id: str, parts: list[tuple[int, str]], absent: set[int], files: dict[str, str]
    ) -> Record:
        known = sorted({index for index, _ in parts} | absent)
        masks = [(known.index(index), os.path.join(files[path], path)) for index, path in parts]
        photo = Path(folder, f"{image_id}.jpg")
        classes = tuple(self.classes[i] for i in known)
        return Record("openimages", image_id, photo, classes=classes, labels=partial(_labels, masks, photo))


def _labels(masks: list[tuple[int, str]], photo: Path) -> LabelMap:
    size = upright_size(photo)
    return stack_masks(size, [(index, _read_mask(Path(path), size)) for index, path in masks])


def _read_mask(path: Path, size: tuple[int, int]) -> Mask:
    mask = read_label_image(path) > 0
    if mask.shape != size:
        scaled = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        mask = np.asarray(scaled) > 0
    return mask


def _files(folder: Path) -> dict[str, str]:
    """Name -> folder of every file below a folder; asking for two million files one by one would take minutes."""
    return {name: parent for parent, _, names in os.walk(folder) for name in names}


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if len(row) < columns:
                raise DataError(f"{path}, line {number}: {columns} columns are expected, not {row}; download it again")
            yield row


def _columns(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Some columns of a CSV whose first line names them."""
    rows = _rows(path, len(names))
    heading = next(rows, [])
    missing = [name for name in names if name not in heading]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}, but {', '.join(heading)}; download it again")
    places = [heading.index(name) for name in names]
    for number, row in enumerate(rows, start=2):
        try:
            yield tuple(row[place] for place in places)
        except IndexError as error:
            raise DataError(f"{path}, line {number} is cut short: {row}; download it again") from error
