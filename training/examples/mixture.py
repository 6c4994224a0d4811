"""Batches for training: data sets mixed by rate, photos balanced by rarity, class lists sampled per photo.

A micro-batch is a function of (seed, step, part) alone, where `part` counts the micro-batches of a step: a resumed run
sees what the killed one would have seen, and a step is the same whatever the number of processes that share its parts.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.network.pyramid import PyramidEncoder
from training.data.concepts import (
    CONCEPTS,
    concept_of,
    has_near_synonyms,
    implied_absent,
    is_doubtful_negative,
    possible_negatives,
)
from training.data.records import OTHER, UNKNOWN
from training.examples.augment import random_view
from training.examples.photos import Photos
from training.examples.sequences import ClassList, sample_class_list
from training.recipe.sequence import SequenceOptions


@dataclass(frozen=True)
class View:
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
class ViewBatch:
    pixels: Tensor
    labels: Tensor
    classes: list[ClassList]


VIEW_SIZE = (384, 384)

UNSHOWN_RATE = 0.1
"""How often a class that no photo of its set shows is asked as absent. Twenty corrections rarely show all labels of a
project, and a name that is only ever answered with "absent" is soon answered so everywhere; but a false positive that
somebody removed has to teach something too."""


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

    def batch(self, step: int, part: int = 0) -> ViewBatch:
        # Parts draw different photos; how long a step's lists are is the same for all, since the slowest of the
        # processes sets the pace.
        low, high = self.options.draw_lengths(random.Random(f"{self.seed}-{step}"))
        rng = random.Random(f"{self.seed}-{part}-{step}")
        examples = [self._example(rng, rng.randint(low, high)) for _ in range(self.batch_size)]
        return ViewBatch(
            torch.stack([example.pixels for example in examples]),
            torch.from_numpy(np.stack([example.labels for example in examples])),
            [example.classes for example in examples],
        )

    def _example(self, rng: random.Random, length: int) -> View:
        photos = rng.choices(self.sets, weights=self.rates)[0]
        index = rng.choices(range(len(photos)), weights=photos.weights)[0]
        view, mask = random_view(photos.images[index], photos.masks[index], self.view, self.longest, rng)
        counts = np.bincount(mask[mask >= 0], minlength=len(photos.classes))
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
        lookup = np.full(len(photos.classes) + 2, OTHER, np.int64)  # OTHER and UNKNOWN count from its end
        lookup[UNKNOWN] = UNKNOWN
        for position, name in enumerate(classes.names):
            if classes.present[position]:
                lookup[photos.classes.index(name)] = position
        shown = tuple(self._reworded(name, classes.names, rng) for name in classes.names)
        return View(PyramidEncoder.normalise(view), lookup[mask], ClassList(shown, classes.present, classes.answered))

    def _reworded(self, name: str, others: Sequence[str], rng: random.Random) -> str:
        """Now and then a synonym that the list does not hold already: other people call it so."""
        concept = concept_of(name)
        if concept is None or rng.random() > 0.1:
            return name
        words = [word for word in self.synonyms.get(concept, []) if word not in others]
        return rng.choice(words) if words else name
