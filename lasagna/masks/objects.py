"""The objects of a class in one image: five people are five objects, each with its pixels and a score.

What always holds: objects do not overlap, and each has a pixel; they are kept as one picture of numbers, so that
hundreds of objects of a large photo take no more memory than one. An object may be in several parts (a car behind a
pole).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

MOST_OBJECTS = 65535
"""Objects of one class in one image: what 16 bits can number."""


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object.

    Attributes:
        mask: bool (height, width) of the image.
        score: How likely it is that these pixels are one object of the class, in [0, 1].
    """

    mask: NDArray[np.bool_]
    score: float


@dataclass(frozen=True, eq=False)
class Objects(Sequence[ObjectMask]):
    """The objects of one class. A sequence whose masks are made when they are asked for.

    Attributes:
        numbers: uint16 (height, width): 0 where no object is, else the object's place in the sequence plus 1.
        scores: One for each object, in [0, 1].
    """

    numbers: NDArray[np.uint16]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", tuple(map(float, self.scores)))
        if self.numbers.dtype != np.uint16 or self.numbers.ndim != 2:
            raise ValueError(f"numbers of objects are uint16 (h, w), not {self.numbers.dtype} {self.numbers.shape}")
        if not all(0 <= score <= 1 for score in self.scores):
            raise ValueError(f"the score of an object is in [0, 1], not {self.scores}")
        counts = np.bincount(self.numbers.reshape(-1), minlength=len(self.scores) + 1)
        if len(counts) != len(self.scores) + 1 or not counts[1:].all():
            raise ValueError(
                f"{len(self.scores)} objects are numbered 1 to {len(self.scores)} and each has a pixel; found numbers "
                f"up to {len(counts) - 1}, {int((counts[1:] == 0).sum())} of them nowhere"
            )
        self.numbers.flags.writeable = False

    @classmethod
    def of_masks(cls, masks: Sequence[NDArray[np.bool_]], scores: Sequence[float], size: tuple[int, int]) -> "Objects":
        """Objects of masks of one image.

        Args:
            masks: bool of `size` (height, width) each. One without a pixel is left out, with its score.
            scores: One for each mask.

        Raises:
            ValueError: Masks overlap, or there are more than `MOST_OBJECTS`.
        """
        numbers, kept = np.zeros(size, np.uint16), list[float]()
        if len(masks) > MOST_OBJECTS:
            raise ValueError(f"{len(masks)} objects of one class; at most {MOST_OBJECTS} can be told apart")
        for mask, score in zip(masks, scores, strict=True):
            if not mask.any():
                continue
            if (numbers[mask] > 0).any():
                raise ValueError(f"object {len(kept) + 1} overlaps another; objects of a class share no pixel")
            kept.append(score)
            numbers[mask] = len(kept)
        return cls(numbers, tuple(kept))

    @classmethod
    def of_numbers(cls, numbers: NDArray[np.integer], scores: Sequence[float]) -> "Objects":
        """Objects of a picture of numbers, of which some may be nowhere: those that are there, in their order.

        Args:
            numbers: (height, width), 0 or a number from 1 to `len(scores)`.
            scores: By number, from 1 on.
        """
        there = np.bincount(numbers.reshape(-1), minlength=len(scores) + 1)[1:] > 0
        places = np.zeros(len(there) + 1, np.uint16)
        places[1:][there] = np.arange(1, there.sum() + 1)
        return cls(places[numbers], tuple(score for score, kept in zip(scores, there, strict=True) if kept))

    def within(self, mask: NDArray[np.bool_]) -> "Objects":
        """The objects' pixels inside a mask; what has none there is left out."""
        return Objects.of_numbers(np.where(mask, self.numbers, np.uint16(0)), self.scores)

    @property
    def union(self) -> NDArray[np.bool_]:
        """bool (height, width): where any object is."""
        return self.numbers > 0

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> ObjectMask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ObjectMask]: ...
    def __getitem__(self, index: int | slice) -> ObjectMask | Sequence[ObjectMask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError
        return ObjectMask(self.numbers == place + 1, self.scores[place])

    def __iter__(self) -> Iterator[ObjectMask]:
        return (self[i] for i in range(len(self)))
