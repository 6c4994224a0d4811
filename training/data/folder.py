"""Annotated photos for training and evaluation.

`FolderDataset` reads one data set in the folder layout

    NAME/images/ID.jpg   NAME/masks/ID.png   NAME/classes.json   NAME/{train,val}.txt

where a mask is uint8 indices into the classes of `classes.json` and 255 is void. What always holds: indices that leave
this module count *queryable* classes only; background (a class that is annotated but never asked for) is `BACKGROUND`,
void is `VOID`.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from training.data.sources.annotations import read_json
from training.data.sources.label_images import read_label_image

VOID = 255
BACKGROUND = 254


@dataclass(frozen=True)
class Sample:
    """One annotated photo: paths, nothing read yet."""

    image_id: str
    image_path: Path
    mask_path: Path


def is_held_out(photo: Path, share: float) -> bool:
    """Whether a photo belongs to the held-out share, which follows from its bytes alone."""
    return share > 0 and int.from_bytes(hashlib.sha256(photo.read_bytes()).digest()[:8], "big") < share * 2**64


class FolderDataset:
    """One split of one data set.

    Attributes:
        name: The folder's name.
        classes: Names that can be asked for, without the background class.
    """

    def __init__(self, root: Path | str, split: str) -> None:
        """Raises DataError where the folder is not in the layout, naming every file that is missing."""
        self.root = Path(root)
        self.name = self.root.resolve().name
        self.split = split
        listed = self.root / f"{split}.txt"
        for path in (self.root, self.root / "classes.json", listed):
            known = sorted(other.stem for other in self.root.glob("*.txt"))
            if path == listed and known and not path.exists():
                raise DataError(f"{path} is missing: no split {split!r}; there are {', '.join(known)}")
            if not path.exists():
                raise DataError(
                    f"{self.root}: no data set in the folder layout: {path} is missing; "
                    "it needs classes.json, images/ID.jpg, masks/ID.png and IDs per split in train.txt, val.txt"
                )
        background, names = _read_classes(self.root / "classes.json")
        self.classes: tuple[str, ...] = tuple(name for i, name in enumerate(names) if i != background)
        self._lookup = np.full(256, VOID, np.uint8)
        position = 0
        for i in range(len(names)):
            if i == background:
                self._lookup[i] = BACKGROUND
            else:
                self._lookup[i] = position
                position += 1
        ids = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        self._samples = [Sample(i, self.root / "images" / f"{i}.jpg", self.root / "masks" / f"{i}.png") for i in ids]
        missing = [str(p) for s in self._samples for p in (s.image_path, s.mask_path) if not p.exists()]
        if missing:
            raise DataError(
                f"{self.root}: {len(missing)} files of split {split!r} are missing, first {', '.join(missing[:3])}"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def divide(self, share: float) -> "tuple[FolderDataset, FolderDataset]":
        """The split without a held-out share, and that share.

        A photo's side follows from its bytes alone, so it never changes between runs or when photos are added.
        """
        parts: tuple[list[Sample], list[Sample]] = [], []
        for sample in self._samples:
            parts[is_held_out(sample.image_path, share)].append(sample)
        kept, held_out = copy.copy(self), copy.copy(self)
        kept._samples, held_out._samples = parts
        return kept, held_out

    def subset(self, indices: Iterable[int]) -> "FolderDataset":
        """The split with some of its photos alone."""
        chosen = copy.copy(self)
        chosen._samples = [self._samples[index] for index in indices]
        return chosen

    def read_mask(self, index: int) -> NDArray[np.uint8]:
        """uint8 (height, width): indices into `classes`, `BACKGROUND` or `VOID`. Raises DataError."""
        path = self._samples[index].mask_path
        mask = read_label_image(path)
        if mask.dtype != np.uint8:
            raise DataError(f"{path}: a mask is one 8-bit channel of class indices, not {mask.dtype}")
        return self._lookup[mask]


def _read_classes(path: Path) -> tuple[int | None, list[str]]:
    """The background's index and all names of a classes.json."""
    meta = read_json(path)
    names = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(f'{path}: it needs {{"classes": [names], "background_index": 0 or null}}, not {str(meta)[:80]}')
    background = meta.get("background_index")
    if background is not None and (not isinstance(background, int) or not 0 <= background < len(names)):
        raise DataError(f"{path}: background_index is null or from 0 to {len(names) - 1}, not {background!r}")
    if len(names) > BACKGROUND:
        raise DataError(f"{path}: {len(names)} classes; 8-bit masks hold {BACKGROUND} and void")
    return background, names
