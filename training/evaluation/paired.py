"""Two models on the same photos: figures of both, and how far their difference would move with other photos.

What always holds: the photos and the classes asked of each are the same for both models; an interval is that of a
paired bootstrap over the photos (`lasagna.bootstrap`); mIoU is over the classes that the annotations have, so it is
over the same classes for both, and a class that is said without being anywhere shows in the figures of presence alone.
A class that a model cannot be asked for counts as what an annotator gets of it, nothing drawn: IoU 0 where it is, and a
miss. It is never an absence: the photos that lack it count for that model nowhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lasagna.bootstrap import bootstrap_counts, percentile_interval
from lasagna.errors import DataError
from training.evaluation.scores import ImageScore
from training.evaluation.scoring import ClassScore

_Figure = Callable[[NDArray[np.float64], int], NDArray[np.float64]]
"""Takes weights (draws, photos) and a model (0 champion, 1 candidate); gives a figure per draw, NaN if undefined."""


class Draws(Protocol):
    """How the bootstrap draws: `training.evaluation.gate.Limits`."""

    @property
    def resamples(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Change:
    """A figure of both models, None where it is undefined, and the interval of candidate - champion."""

    champion: float | None
    candidate: float | None
    interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float | None:
        return None if self.champion is None or self.candidate is None else self.candidate - self.champion

    @property
    def is_more(self) -> bool:
        """The whole interval is above zero."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def is_less(self) -> bool:
        return self.interval is not None and self.interval[1] < 0

    def in_words(self) -> str:
        words = f"{_figure(self.champion)} → {_figure(self.candidate)}"
        if self.difference is not None and self.interval is not None:
            low, high = self.interval
            words += f" ({self.difference:+.3f}, interval {low:+.3f} to {high:+.3f})"
        return words


@dataclass(frozen=True)
class ClassChange:
    """One class on the held-out photos.

    Attributes:
        photos: With the class, by the annotation.
        iou: Over all photos together, as `training.evaluation.metrics.SegmentationMetrics`.
        f1: Of presence.
        false_positives: Photos without the class in which it was said, of `absent` such photos: champion, candidate.
        absent: Photos that certainly lack the class.
        judged_alone: It is in enough photos.
        unasked: Photos of either kind for which it could not be asked: champion, candidate.
    """

    name: str
    photos: int
    iou: Change
    f1: Change
    false_positives: tuple[int, int]
    absent: int
    judged_alone: bool
    unasked: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Flip:
    """An answer that changed sides: the class is said to be present by one of the models only."""

    image_id: str
    name: str
    present: bool
    champion: float
    candidate: float
    said: bool

    @property
    def is_right(self) -> bool:
        """The candidate is right now."""
        return self.said == self.present


def sign_test(new: int, gone: int) -> float:
    """The chance that of new + gone changes, each to either side alike, `new` or more are to this side (McNemar's exact
    test, one-sided)."""
    total = new + gone
    return sum(math.comb(total, k) for k in range(new, total + 1)) / 2**total


class Pair:
    """The scores of two models on the same photos, as arrays (model, photo, class)."""

    def __init__(
        self, champion: Sequence[ImageScore], candidate: Sequence[ImageScore], draws: Draws, what: str
    ) -> None:
        rows = [{score.image_id: score for score in scores} for scores in (champion, candidate)]
        if rows[0].keys() != rows[1].keys():
            odd = sorted(rows[0].keys() ^ rows[1].keys())
            raise DataError(
                f"champion and candidate were scored on different {what} photos ({', '.join(odd[:5])} only by one of "
                "them); score both on the same"
            )
        self.ids = list(rows[0])
        self.images = len(self.ids)
        self._confidence = draws.confidence
        self._pairs = [(rows[0][image], rows[1][image]) for image in self.ids]
        for first, second in self._pairs:
            if [one.name for one in first.classes] != [one.name for one in second.classes]:
                raise DataError(f"champion and candidate were asked different classes of photo {first.image_id}")
        names = dict.fromkeys(one.name for first, _ in self._pairs for one in first.classes)
        self.names = {name: i for i, name in enumerate(names)}
        shape = (2, self.images, len(self.names))
        self._intersection, self._union, self._truth = (np.zeros(shape) for _ in range(3))
        self._said, self._present, self._absent, self._unasked = (np.zeros(shape) for _ in range(4))
        for row, pair in enumerate(self._pairs):
            for model, score in enumerate(pair):
                for one in score.classes:
                    at = model, row, self.names[one.name]
                    self._intersection[at], self._union[at], self._truth[at] = one.intersection, one.union, one.truth
                    self._said[at], self._present[at] = one.said, one.present
                    self._unasked[at] = one.is_unknown
                    self._absent[at] = not one.present and not one.is_unknown
        self._draws = bootstrap_counts(self.images, draws.resamples, draws.seed) if self.images else np.ones((0, 0))

    @cached_property
    def miou(self) -> Change:
        return self.mean_iou(list(self.names))

    def mean_iou(self, names: Sequence[str]) -> Change:
        """The mean IoU over those of the classes that are in the annotations (of a draw)."""
        at = [self.names[name] for name in names]

        def mean(weights: NDArray[np.float64], model: int) -> NDArray[np.float64]:
            truth, union = weights @ self._truth[model][:, at], weights @ self._union[model][:, at]
            there = truth > 0
            iou = np.divide(weights @ self._intersection[model][:, at], union, out=np.zeros_like(union), where=there)
            return _ratio(iou.sum(1), there.sum(1))

        return self._change(mean)

    @cached_property
    def f1(self) -> Change:
        """F1 of presence over all decisions together: 2 TP / (2 TP + FP + FN)."""
        return self._f1(slice(None))

    def _f1(self, at: slice) -> Change:
        def f1(weights: NDArray[np.float64], model: int) -> NDArray[np.float64]:
            said, present = self._said[model][:, at], self._present[model][:, at]
            return _ratio(weights @ (2 * said * present).sum(1), weights @ (said + present).sum(1))

        return self._change(f1)

    @cached_property
    def false_positive_rate(self) -> Change:
        """Share said to be present, of the pairs of photo and class whose class is certainly absent."""

        def rate(weights: NDArray[np.float64], model: int) -> NDArray[np.float64]:
            absent = self._absent[model]
            return _ratio(weights @ (self._said[model] * absent).sum(1), weights @ absent.sum(1))

        return self._change(rate)

    def false_positive_changes(self, name: str) -> tuple[int, int]:
        """Photos in which the candidate alone, and in which the champion alone, says the absent class, of those where
        both were asked for it."""
        both = self._absent[:, :, self.names[name]].prod(0)
        champion, candidate = (self._said[model, :, self.names[name]] * both for model in (0, 1))
        return int((candidate > champion).sum()), int((champion > candidate).sum())

    def classes(self, enough: int) -> list[ClassChange]:
        """Every class; judged alone from `enough` photos on."""
        found = []
        for name, i in self.names.items():
            photos = int(self._present[0, :, i].sum())
            wrong = (self._said * self._absent)[:, :, i].sum(1)
            found.append(
                ClassChange(
                    name,
                    photos,
                    self.mean_iou([name]),
                    self._f1(slice(i, i + 1)),
                    (int(wrong[0]), int(wrong[1])),
                    int(self._absent[:, :, i].max(0).sum()),
                    photos >= enough,
                    (int(self._unasked[0, :, i].sum()), int(self._unasked[1, :, i].sum())),
                )
            )
        return found

    def flips(self) -> list[Flip]:
        return [
            Flip(first.image_id, before.name, before.present, before.probability, after.probability, after.said)
            for first, second in self._pairs
            for before, after in zip(first.classes, second.classes, strict=True)
            if before.said != after.said and not (before.is_unknown or after.is_unknown)
        ]

    def answers(self) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        both: list[tuple[ClassScore, ClassScore]] = [
            pair
            for first, second in self._pairs
            for pair in zip(first.classes, second.classes, strict=True)
            if not any(one.is_unknown for one in pair)
        ]
        truth = np.array([before.present for before, _ in both], bool)
        champion, candidate = (np.array([pair[side].probability for pair in both], np.float64) for side in (0, 1))
        return truth, champion, candidate

    def _change(self, figure: _Figure) -> Change:
        """The figure of both models, and the interval of its difference over the draws."""
        if not self.images:
            return Change(None, None)
        every = np.ones((1, self.images))
        champion, candidate = (float(figure(every, model)[0]) for model in (0, 1))
        interval = percentile_interval(figure(self._draws, 1) - figure(self._draws, 0), self._confidence)
        values = [None if math.isnan(value) else value for value in (champion, candidate)]
        return Change(values[0], values[1], interval)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
