"""Batches for training: data sets mixed by rate, photos balanced by rarity, class lists sampled per photo.

A micro-batch is a function of (seed, step, part) alone, where `part` counts the micro-batches of a step: a resumed run
sees what the killed one would have seen, and a step is the same whatever the number of processes that share its parts.
"""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.errors import DataError
from lasagna.masks.image import load_image
from lasagna.network.pyramid import PyramidEncoder
from training.data.concepts import (
    CONCEPTS,
    concept_of,
    has_near_synonyms,
    implied_absent,
    is_doubtful_negative,
    possible_negatives,
)
from training.data.folder import BACKGROUND, VOID, FolderDataset
from training.data.records import OTHER, UNKNOWN, Record
from training.data.sources import Source
from training.examples.augment import Photo, random_view
from training.examples.sequences import ClassList, SequenceOptions, sample_class_list


@dataclass(frozen=True)
class Example:
    """One augmented photo and its question.

    Attributes:
        pixels: float32 (3, H, W), normalised.
        labels: int64 (H, W): index into the question's names, -1 a pixel of none of them, -2 void.
        classes: The question.
    """

    pixels: Tensor
    labels: NDArray[np.int64]
    classes: ClassList


@dataclass(frozen=True)
class Batch:
    pixels: Tensor
    labels: Tensor
    classes: list[ClassList]


VIEW_SIZE = (384, 384)

UNSHOWN_RATE = 0.1
"""How often a class that no photo of its set shows is asked as absent. Twenty corrections rarely show all labels of a
project, and a name that is only ever answered with "absent" is soon answered so everywhere; but a false positive that
somebody removed has to teach something too."""


class Photos:
    """One data set of class lists held in memory.

    Attributes:
        name: Of the data set; what its names may mean beside others' depends on it (`training.data.concepts`).
        classes: Its class names.
        images: uint8 (H, W, 3) each.
        masks: uint8 (H, W) each: indices into `classes`, `BACKGROUND` or `VOID`.
        decided: bool (photos, classes): whether the annotation says if the class is there.
        shown: bool (classes,): whether any of the photos has the class.
        weights: How often each photo is drawn, relative to the others.
    """

    def __init__(self, dataset: FolderDataset) -> None:
        self.name, self.classes = dataset.name, dataset.classes
        with ThreadPoolExecutor(4) as pool:
            self.images = list(pool.map(lambda s: np.asarray(load_image(s.image_path)), dataset))
        self.masks: list[Photo] = [dataset.read_mask(i) for i in range(len(dataset))]
        self.decided: NDArray[np.bool_] = np.ones((len(self.images), len(self.classes)), bool)
        self._weigh()

    @classmethod
    def from_source(cls, source: Source, name: str, longest: int) -> "Photos":
        """Any source of class lists.

        Args:
            longest: Larger photos are held with this longest side.

        Raises:
            DataError: It has more classes than a mask of 8 bits can hold, or a record without a class list.
        """
        if len(source.classes) > BACKGROUND:
            raise DataError(f"{name} has {len(source.classes)} classes; photos in memory have at most {BACKGROUND}")
        photos = cls.__new__(cls)
        photos.name, photos.classes = name, tuple(source.classes)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: _read(source[i], photos.classes, longest), range(len(source))))
        photos.images = [image for image, _, _ in found]
        photos.masks = [mask for _, mask, _ in found]
        photos.decided = np.stack([decided for _, _, decided in found])
        photos._weigh()
        return photos

    def __len__(self) -> int:
        return len(self.images)

    def _weigh(self) -> None:
        """Repeat-factor sampling (LVIS, arXiv 1908.03195): photos with rare classes come more often."""
        present = np.zeros((len(self.images), len(self.classes)), bool)
        for i, mask in enumerate(self.masks):
            found = np.unique(mask)
            present[i, found[found < len(self.classes)]] = True
        self.shown: NDArray[np.bool_] = np.asarray(present.any(0))
        frequency = present.mean(0).clip(1e-6)
        factor = np.sqrt(np.maximum(1.0, 0.15 / frequency)).clip(max=4.0)
        self.weights = np.where(present, factor, 1.0).max(1)


def _read(record: Record, classes: tuple[str, ...], longest: int) -> tuple[Photo, Photo, NDArray[np.bool_]]:
    """Photo, mask and decided classes of a record. Where masks overlap, the later layer is on top."""
    if record.image_path is None or not record.classes:
        raise DataError(f"{record.source} {record.image_id}: no class list of a photo")
    image = np.asarray(load_image(record.image_path))
    labels = record.read()
    table = np.array([classes.index(name) for name in record.classes], np.uint8)
    mask: Photo = np.full((labels.shape[1], labels.shape[2]), BACKGROUND, np.uint8)
    for layer in labels:
        mask[layer >= 0] = table[layer[layer >= 0]]
    mask[(labels == UNKNOWN).any(0)] = VOID
    scale = longest / max(mask.shape)
    if scale < 1:
        size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return image, mask, np.isin(classes, record.classes)


class Mixture:
    """Draws batches from several data sets.

    Args:
        sets: The data sets.
        rates: Relative rate of each.
        options: The strategies of the sequence format.
        batch_size: Photos per micro-batch.
        longest: Longest side at which the model sees a photo.
        seed: Of all randomness.
        view: (height, width) of the random views in pixels.
    """

    def __init__(
        self,
        sets: Sequence[Photos],
        rates: Sequence[float],
        options: SequenceOptions,
        batch_size: int,
        longest: int,
        seed: int,
        view: tuple[int, int] = VIEW_SIZE,
    ) -> None:
        self.sets, self.rates, self.options = list(sets), list(rates), options
        self.batch_size, self.longest, self.seed, self.view = batch_size, longest, seed, view
        everything = [name for photos in sets for name in photos.classes]
        self.foreign = {p.name: possible_negatives(p.name, p.classes, everything) for p in sets}
        self.related = {p.name: [n for n in dict.fromkeys(everything) if n not in p.classes] for p in sets}
        self.synonyms: dict[str, list[str]] = {}
        for word, concept in CONCEPTS.items():
            self.synonyms.setdefault(concept, []).append(word)

    def batch(self, step: int, part: int = 0) -> Batch:
        # Parts draw different photos; how long a step's lists are is the same for all, since the slowest of the
        # processes sets the pace.
        low, high = self.options.draw_lengths(random.Random(f"{self.seed}-{step}"))
        rng = random.Random(f"{self.seed}-{part}-{step}")
        examples = [self._example(rng, rng.randint(low, high)) for _ in range(self.batch_size)]
        return Batch(
            torch.stack([example.pixels for example in examples]),
            torch.from_numpy(np.stack([example.labels for example in examples])),
            [example.classes for example in examples],
        )

    def _example(self, rng: random.Random, length: int) -> Example:
        photos = rng.choices(self.sets, weights=self.rates)[0]
        index = rng.choices(range(len(photos)), weights=photos.weights)[0]
        view, mask = random_view(photos.images[index], photos.masks[index], self.view, self.longest, rng)
        counts = np.bincount(mask.ravel(), minlength=256)[: len(photos.classes)]
        # A sliver at the crop's edge is neither present nor absent.
        positives = [i for i, count in enumerate(counts) if count >= 48]
        names = [photos.classes[i] for i in positives]
        certain = np.flatnonzero((counts == 0) & photos.decided[index])
        asked = [i for i in certain if photos.shown[i] or rng.random() < UNSHOWN_RATE]
        absent = [photos.classes[i] for i in asked or ([] if names else certain)]  # something has to be asked
        foreign = self.foreign[photos.name] + implied_absent(absent, self.related[photos.name])
        foreign = [n for n in dict.fromkeys(foreign) if not is_doubtful_negative(n, names)]
        extra = (
            rng.sample(foreign, min(len(foreign), rng.randint(0, max(2, length // 3)))) if rng.random() < 0.6 else []
        )
        classes = sample_class_list(names, absent + extra, length, self.options, rng)
        if has_near_synonyms(photos.name):
            # One near-synonym (bag and purse) is certainly absent only where the list offers the word that the
            # annotators chose instead. (Leaving out the others altogether taught the model that a list with every kind
            # of shoe has no shoes.)
            unlisted = [name for name in names if name not in classes.names]
            doubtful = {name for name in absent if is_doubtful_negative(name, unlisted)}
            if doubtful >= set(classes.names):  # nothing that can be asked is left
                classes = ClassList(tuple(names[:1]), (True,), (0,))
            classes = classes.without(doubtful)
        lookup = np.full(256, OTHER, np.int64)
        lookup[VOID] = UNKNOWN
        for position, name in enumerate(classes.names):
            if classes.present[position]:
                lookup[photos.classes.index(name)] = position
        shown = tuple(self._reworded(name, classes.names, rng) for name in classes.names)
        return Example(
            PyramidEncoder.normalise(view), lookup[mask], ClassList(shown, classes.present, classes.answered)
        )

    def _reworded(self, name: str, others: Sequence[str], rng: random.Random) -> str:
        """Now and then a synonym that the list does not hold already: other people call it so."""
        concept = concept_of(name)
        if concept is None or rng.random() > 0.1:
            return name
        words = [word for word in self.synonyms.get(concept, []) if word not in others]
        return rng.choice(words) if words else name
