"""Data sets of class lists in memory, for random views of their photos."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.image import load_image
from training.data.records import OTHER, UNKNOWN, Record
from training.data.sets import locate_set, training_records
from training.data.sources import Source
from training.examples.augment import Labels, Photo
from training.recipe.values import Recipe


class Photos:
    """One data set of class lists held in memory.

    Attributes:
        name: Of the data set; what its names may mean beside others' depends on it (`training.data.concepts`).
        classes: Its class names.
        images: uint8 (H, W, 3) each.
        masks: int16 (H, W) each: indices into `classes`, `OTHER` or `UNKNOWN`.
        decided: bool (photos, classes): whether the annotation says if the class is there.
        shown: bool (classes,): whether any of the photos has the class.
        weights: How often each photo is drawn, relative to the others.
    """

    def __init__(self, source: Source, name: str, longest: int) -> None:
        """Reads all photos.

        Args:
            source: Of class lists.
            longest: Larger photos are held with this longest side.

        Raises:
            DataError: A record has no class list, or a file cannot be read.
        """
        self.name, self.classes = name, tuple(source.classes)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: _read(source[i], self.classes, longest), range(len(source))))
        self.images = [image for image, _, _ in found]
        self.masks = [mask for _, mask, _ in found]
        self.decided: NDArray[np.bool_] = np.array([decided for _, _, decided in found], bool)
        self._weigh()

    def __len__(self) -> int:
        return len(self.images)

    def _weigh(self) -> None:
        """Repeat-factor sampling (LVIS, arXiv 1908.03195): photos with rare classes come more often."""
        present = np.zeros((len(self.images), len(self.classes)), bool)
        for i, mask in enumerate(self.masks):
            found = np.unique(mask)
            present[i, found[found >= 0]] = True
        self.shown: NDArray[np.bool_] = np.asarray(present.any(0))
        frequency = present.mean(0).clip(1e-6)
        factor = np.sqrt(np.maximum(1.0, 0.15 / frequency)).clip(max=4.0)
        self.weights = np.where(present, factor, 1.0).max(1)


def _read(record: Record, classes: tuple[str, ...], longest: int) -> tuple[Photo, Labels, NDArray[np.bool_]]:
    """Photo, mask and decided classes of a record. Where masks overlap, the later layer is on top."""
    if record.image_path is None or not record.classes:
        raise DataError(f"{record.source} {record.image_id}: no class list of a photo")
    image = np.asarray(load_image(record.image_path))
    labels = record.read()
    table = np.array([classes.index(name) for name in record.classes], np.int16)
    mask: Labels = np.full((labels.shape[1], labels.shape[2]), OTHER, np.int16)
    for layer in labels:
        mask[layer >= 0] = table[layer[layer >= 0]]
    mask[(labels == UNKNOWN).any(0)] = UNKNOWN
    scale = longest / max(mask.shape)
    if scale < 1:
        size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.int16)
    return image, mask, np.isin(classes, record.classes)


def photos_in_memory(recipe: Recipe, longest: int) -> list[Photos]:
    """The data sets of class lists, in the recipe's order, without what it holds out."""
    found = []
    for name, data in recipe.semantic.items():
        located = locate_set(recipe, name, data)
        # A set in the folder layout is known by its folder, whatever a recipe calls it.
        known = located.folder.resolve().name if located.reader == "folder" else name
        found.append(Photos(training_records(recipe, name, data), known, longest))
        if not len(found[-1]):
            raise DataError(f"tasks.semantic.sets.{name}: no photo to train on")
    return found
