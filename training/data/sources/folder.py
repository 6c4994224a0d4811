"""The folder layout of `docs/data.md`, as a source: see `training.data.folder.FolderDataset`, which reads it.

What always holds: every class of classes.json is decided in every photo; the background class is `OTHER`.
"""

from functools import partial
from pathlib import Path

import numpy as np

from training.data.folder import BACKGROUND, VOID, FolderDataset
from training.data.records import OTHER, UNKNOWN, LabelMap, Record


class Folder:
    """One split of one data set.

    Attributes:
        classes: The names that can be asked for, without the background class.
    """

    def __init__(self, root: Path, split: str) -> None:
        """Raises DataError where the folder is not in the layout, or there is no such split."""
        self._open(FolderDataset(root, split))

    @classmethod
    def of(cls, dataset: FolderDataset) -> "Folder":
        """A split that is open already, or a part of one."""
        source = cls.__new__(cls)
        source._open(dataset)
        return source

    def _open(self, dataset: FolderDataset) -> None:
        self._dataset, self.classes = dataset, dataset.classes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        sample = self._dataset[index]
        return Record(
            self._dataset.name,
            sample.image_id,
            sample.image_path,
            classes=self.classes,
            labels=partial(_labels, self._dataset, index),
        )


def _labels(dataset: FolderDataset, index: int) -> LabelMap:
    mask = dataset.read_mask(index)
    labels = mask.astype(np.int16)
    labels[mask == BACKGROUND] = OTHER
    labels[mask == VOID] = UNKNOWN
    return labels[None]
