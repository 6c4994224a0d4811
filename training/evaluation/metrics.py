"""Figures of merit for class-list segmentation: masks (IoU) and presence (is the class in the image at all?).

Both accumulate over images, so that a data set is scored without being held in memory. What always holds: void pixels
count nowhere; a figure that is undefined (no such class, no positive) is None, never 0 and never NaN.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.scoring import PhotoScore


class SegmentationMetrics:
    """Per-class IoU, their mean, and pixel accuracy, of scored photos (`training.evaluation.scoring`).

    A pixel that no class covers has no IoU, but a class that covers such a pixel is wrong there.

    Attributes:
        intersection: int64 (classes,): pixels of the class in annotation and answer.
        union: int64 (classes,): pixels of the class in either.
        truth: int64 (classes,): pixels of the class in the annotation.
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"there is at least one class, not {classes}")
        self.intersection = np.zeros(classes, np.int64)
        self.union = np.zeros(classes, np.int64)
        self.truth = np.zeros(classes, np.int64)
        self._right = 0
        self._pixels = 0

    def update(self, score: PhotoScore, asked: Sequence[int] | None = None) -> None:
        """Adds one image.

        Args:
            score: Of an answer whose masks do not overlap.
            asked: Which of the classes the score's first ones are; None: all, in order.
        """
        for index, one in zip(range(len(self.truth)) if asked is None else asked, score.classes, strict=False):
            self.intersection[index] += one.intersection
            self.union[index] += one.union
            self.truth[index] += one.truth
        self._right += score.right
        self._pixels += score.pixels

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union per class, over all images together; None where the union is empty.

        A class that is predicted somewhere but is in no image's truth has a union, and an IoU of 0.
        """
        return [float(i / u) if u else None for i, u in zip(self.intersection, self.union, strict=True)]

    @property
    def miou(self) -> float | None:
        """Mean of the IoU over the classes with a union, the usual mIoU of a fixed class list (as mmsegmentation's).

        Classes that are neither in the truth nor predicted are left out; a class that is predicted without being in any
        truth counts, with 0. None where no class has a union.
        """
        return self.mean_iou(range(len(self.truth)))

    def mean_iou(self, classes: Iterable[int]) -> float | None:
        """`miou` over some of the classes."""
        every = self.iou
        defined = [value for i in classes if (value := every[i]) is not None]
        return float(np.mean(defined)) if defined else None

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of not-void pixels whose label is right: one of the pixel's classes, or none where it has none."""
        return self._right / self._pixels if self._pixels else None


class PresenceMetrics:
    """Which of the asked classes are in the image: one decision and one probability per image and class.

    Micro figures: all image-class pairs are counted together, whatever their class and image.
    """

    def __init__(self, classes: int) -> None:
        self.true_positives = np.zeros(classes, np.int64)
        self.false_positives = np.zeros(classes, np.int64)
        self.false_negatives = np.zeros(classes, np.int64)
        self.true_negatives = np.zeros(classes, np.int64)
        self._truth: list[NDArray[np.bool_]] = []
        self._probability: list[NDArray[np.float64]] = []
        self._asked: list[NDArray[np.int64]] = []

    def update(
        self,
        truth: Sequence[bool],
        said: Sequence[bool],
        probability: Sequence[float],
        asked: Sequence[int] | None = None,
    ) -> None:
        """Adds one image.

        Args:
            truth: Per asked class: is it present?
            said: Did the model say so?
            probability: In [0, 1], what it said.
            asked: Which classes were asked, each once; None: all.
        """
        present, decided = np.asarray(truth, bool), np.asarray(said, bool)
        ranked = np.asarray(probability, np.float64)
        index = np.arange(len(self.true_positives)) if asked is None else np.asarray(asked, np.int64)
        if not present.shape == decided.shape == ranked.shape == index.shape:
            raise ValueError(f"expected {index.shape}, found {present.shape}, {decided.shape}, {ranked.shape}")
        if not ((ranked >= 0) & (ranked <= 1)).all():
            raise ValueError("probabilities are in [0, 1]")
        self.true_positives[index] += present & decided
        self.false_positives[index] += ~present & decided
        self.false_negatives[index] += present & ~decided
        self.true_negatives[index] += ~present & ~decided
        self._truth.append(present)
        self._probability.append(ranked)
        self._asked.append(index)

    def precision(self, index: int | None = None) -> float | None:
        """Share of the pairs said to be present that are; for one class, or all pairs. None where nothing was said."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives, index)

    def recall(self, index: int | None = None) -> float | None:
        """Share of the present pairs that were said to be; None where nothing is present."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives, index)

    def f1(self, index: int | None = None) -> float | None:
        """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; None where all three are 0."""
        twice = 2 * self.true_positives
        return _ratio(twice, twice + self.false_positives + self.false_negatives, index)

    def absent_false_positive_rate(self, index: int | slice | None = None) -> float | None:
        """Share of the absent image-class pairs that were said to be present; None where nothing is absent."""
        return _ratio(self.false_positives, self.false_positives + self.true_negatives, index)

    def average_precision(self, classes: Sequence[int] | None = None) -> float | None:
        """`average_precision` over all image-class pairs (of some classes) together; None where nothing is present."""
        if classes is None:
            return average_precision(self.truth, self.probability)
        chosen = np.isin(np.concatenate([np.zeros(0, np.int64), *self._asked]), classes)
        return average_precision(self.truth[chosen], self.probability[chosen])

    def calibration_error(self) -> float | None:
        """`expected_calibration_error` of all image-class pairs; None before the first of them."""
        return expected_calibration_error(self.truth, self.probability) if len(self.truth) else None

    def calibration_error_of_halves(self) -> float | None:
        """The calibration error after calibration on this very data, without a probability having seen its own truth.

        Every second image is one half. The answers of each half are calibrated on the other one, by Platt scaling of
        the logits (a temperature and an offset, as `training.evaluation.calibrate` fits them on held-out photos).

        Returns:
            `expected_calibration_error` of all answers; None where a half has no present or no absent answer.
        """
        from sklearn.linear_model import LogisticRegression

        half = np.concatenate([np.zeros(0, bool), *(np.full(len(t), i % 2) for i, t in enumerate(self._truth))]) == 1
        near = 1e-6  # a probability of 0 or 1 has no logit
        clipped = np.clip(self.probability, near, 1 - near)
        logits = np.log(clipped / (1 - clipped))[:, None]
        calibrated = np.zeros(len(logits))
        for fitted, asked in ((half, ~half), (~half, half)):
            if len(set(self.truth[fitted].tolist())) < 2 or not asked.any():
                return None
            fit = LogisticRegression(C=np.inf).fit(logits[fitted], self.truth[fitted])
            calibrated[asked] = fit.predict_proba(logits[asked])[:, 1]
        return expected_calibration_error(self.truth, calibrated)

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(image-class pairs,) bool, image by image: which of the asked classes are present."""
        return np.concatenate([np.zeros(0, bool), *self._truth])

    @property
    def probability(self) -> NDArray[np.float64]:
        """(image-class pairs,) the probabilities, in the order of `truth`."""
        return np.concatenate([np.zeros(0), *self._probability])


def average_precision(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Step-wise average precision of a ranking, not interpolated: sum over n of (R_n - R_(n-1)) P_n.

    Precision P_n and recall R_n are those of saying "positive" to every score at or over the n-th largest *distinct*
    score, so that tied scores come in together and their order does not matter. This is the definition of
    scikit-learn's `average_precision_score`, which however calls a ranking without positives 0.

    Args:
        truth: bool (n,).
        score: float (n,), larger is more positive.

    Returns:
        In (0, 1], or None where nothing is positive.
    """
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], np.cumsum(truth[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1)
    gained = np.diff(hits[last_of_tie], prepend=0)
    return float((gained * precision).sum() / positives)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram (arXiv 1706.04599, section 2): what happened beside what was predicted.

    Attributes:
        count: int64 (bins,) answers in each bin of equal width.
        predicted: (bins,) their mean probability; NaN in an empty bin.
        observed: (bins,) the share of them that is positive; NaN in an empty bin.
    """

    count: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error (the same paper, equation 3): the mean distance of the two, weighted by count."""
        return float(np.nansum(self.count * np.abs(self.observed - self.predicted)) / self.count.sum())


def reliability(truth: NDArray[np.bool_], probability: NDArray[np.float64], bins: int = 15) -> Reliability:
    """Sorts answers into bins of equal width by their probability.

    Args:
        truth: bool (n,), n >= 1.
        probability: (n,) in [0, 1].
    """
    which = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = (np.bincount(which, values, bins) / count for values in (probability, truth))
        return Reliability(count, *means)


def expected_calibration_error(truth: NDArray[np.bool_], probability: NDArray[np.float64], bins: int = 15) -> float:
    """How far probabilities are from frequencies, in [0, 1]; see `reliability`."""
    return reliability(truth, probability, bins).error


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64], index: int | slice | None) -> float | None:
    chosen = slice(None) if index is None else index
    numerator, denominator = part[chosen].sum(), whole[chosen].sum()
    return float(numerator / denominator) if denominator else None
