"""Counts by photo that masks are judged by, and what follows: mIoU and pixel accuracy, of any draw of photos.

What always holds: the figures of all photos are those of `training.evaluation.metrics` on the same pixels (a class that
is said and is nowhere counts 0; "none" is no class of the mean); counts may be weighted, as samples are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Figures = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tally:
    """Of P photos and K classes.

    Attributes:
        intersection, truth, predicted: (P, K) pixels.
        right, total: (P,) pixels, "none" among them.
    """

    intersection: Figures
    truth: Figures
    predicted: Figures
    right: Figures
    total: Figures

    @classmethod
    def of(cls, photos: Sequence["Tally"]) -> "Tally":
        """Those of several photos, one below the other."""
        names = ("intersection", "truth", "predicted", "right", "total")
        return cls(*(np.concatenate([getattr(photo, name) for photo in photos]) for name in names))

    @property
    def accuracy(self) -> Figures:
        """(P,) share of right pixels of each photo; 1 where nothing is decided."""
        return np.divide(self.right, self.total, out=np.ones_like(self.right), where=self.total > 0)

    def miou(self, draws: Figures | None = None) -> Figures:
        """Mean IoU over all photos, or over each of many draws of them.

        Args:
            draws: (R, P) how often each photo comes; None: each once.

        Returns:
            (R,); NaN where no class has a union.
        """
        times = np.ones((1, len(self.total))) if draws is None else draws
        hit = times @ self.intersection
        union = times @ self.truth + times @ self.predicted - hit
        has = union > 0
        iou = np.divide(hit, union, out=np.zeros_like(hit), where=has)
        number = has.sum(1)
        return np.divide(iou.sum(1), number, out=np.full(len(iou), np.nan), where=number > 0)

    def score(self) -> float:
        """mIoU plus mean accuracy: what choices are made by."""
        return float(np.nan_to_num(self.miou()[0]) + self.accuracy.mean())


def tally(truth: NDArray[np.int64], said: NDArray[np.int64], weight: Figures, classes: int) -> Tally:
    """One photo's counts.

    Args:
        truth, said: (n,) class index, or `classes` for none.
        weight: (n,) pixels that each stands for.
    """
    right = truth == said

    def count(which: NDArray[np.int64], chosen: NDArray[np.bool_] | slice) -> Figures:
        counts: Figures = np.bincount(which[chosen], weight[chosen], classes + 1).astype(np.float64)
        return counts[None, :classes]

    every = slice(None)
    return Tally(
        count(truth, right),
        count(truth, every),
        count(said, every),
        np.array([weight[right].sum()]),
        np.array([weight.sum()]),
    )
