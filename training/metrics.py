"""Figures of merit for class-list segmentation: masks (IoU) and presence (is the class in the image at all?).

Both accumulate over images, so that a data set is scored without being held in memory. What always holds: void pixels
count nowhere; a figure that is undefined (no such class, no positive) is None, never 0 and never NaN.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.data import BACKGROUND, VOID

_LABELS = 256


class SegmentationMetrics:
    """Per-class IoU, their mean, and pixel accuracy of label maps.

    Every pixel of a label map is one class's index, or `BACKGROUND` (no class), or `VOID` (truth only: not scored).
    Background is no class: it has no IoU, but a class that covers background pixels is wrong there.

    Attributes:
        intersection: int64 (classes,): pixels of the class in truth and prediction.
        truth: int64 (classes,): pixels of the class in the truth.
        predicted: int64 (classes,): pixels of the class in the prediction, void pixels left out.
    """

    def __init__(self, classes: int) -> None:
        if not 0 < classes <= BACKGROUND:
            raise ValueError(f"label maps hold 1 to {BACKGROUND} classes, not {classes}")
        self.intersection = np.zeros(classes, np.int64)
        self.truth = np.zeros(classes, np.int64)
        self.predicted = np.zeros(classes, np.int64)
        self._correct = 0
        self._scored = 0

    def update(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Adds one image; both are uint8 (height, width)."""
        classes = len(self.truth)
        for name, labels in (("truth", truth), ("prediction", prediction)):
            if labels.dtype != np.uint8 or labels.shape != truth.shape:
                raise ValueError(f"{name}: expected uint8 {truth.shape}, found {labels.dtype} {labels.shape}")
        scored = truth != VOID
        t, p = truth[scored], prediction[scored]
        truth_counts = np.bincount(t, minlength=_LABELS)
        predicted_counts = np.bincount(p, minlength=_LABELS)
        correct_counts = np.bincount(t[t == p], minlength=_LABELS)
        for name, counts in (("truth", truth_counts), ("prediction", predicted_counts)):
            unknown = np.flatnonzero(counts[classes:BACKGROUND]) + classes
            if unknown.size or counts[VOID]:
                found = [*unknown.tolist(), *([VOID] if counts[VOID] else [])]
                raise ValueError(f"{name}: labels {found} are neither one of {classes} classes nor background")
        self.intersection += correct_counts[:classes]
        self.truth += truth_counts[:classes]
        self.predicted += predicted_counts[:classes]
        self._correct += int(correct_counts.sum())
        self._scored += int(t.size)

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union per class, over all images together; None where the union is empty.

        A class that is predicted somewhere but is in no image's truth has a union, and an IoU of 0.
        """
        union = self.truth + self.predicted - self.intersection
        return [float(i / u) if u else None for i, u in zip(self.intersection, union, strict=True)]

    @property
    def miou(self) -> float | None:
        """Mean of the IoU over the classes with a union, the usual mIoU of a fixed class list (as mmsegmentation's).

        Classes that are neither in the truth nor predicted are left out; a class that is predicted without being in any
        truth counts, with 0. None where no class has a union.
        """
        defined = [iou for iou in self.iou if iou is not None]
        return float(np.mean(defined)) if defined else None

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of not-void pixels whose label is right; a background pixel is right when no class covers it."""
        return self._correct / self._scored if self._scored else None


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

    def update(self, truth: Sequence[bool], said: Sequence[bool], probability: Sequence[float]) -> None:
        """Adds one image. Per class: is it present, did the model say so, with what probability in [0, 1]."""
        present, decided = np.asarray(truth, bool), np.asarray(said, bool)
        ranked = np.asarray(probability, np.float64)
        expected = self.true_positives.shape
        if not present.shape == decided.shape == ranked.shape == expected:
            raise ValueError(f"expected {expected}, found {present.shape}, {decided.shape}, {ranked.shape}")
        if not ((ranked >= 0) & (ranked <= 1)).all():
            raise ValueError("probabilities are in [0, 1]")
        self.true_positives += present & decided
        self.false_positives += ~present & decided
        self.false_negatives += present & ~decided
        self.true_negatives += ~present & ~decided
        self._truth.append(present)
        self._probability.append(ranked)

    def precision(self, index: int | None = None) -> float | None:
        """Of what was said present, the share that is; of one class, or of all pairs. None where nothing was said."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives, index)

    def recall(self, index: int | None = None) -> float | None:
        """Of what is present, the share that was said so; None where nothing is present."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives, index)

    def f1(self, index: int | None = None) -> float | None:
        """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; None where all three are 0."""
        twice = 2 * self.true_positives
        return _ratio(twice, twice + self.false_positives + self.false_negatives, index)

    def absent_false_positive_rate(self, index: int | slice | None = None) -> float | None:
        """Of the absent image-class pairs, the share that was said present; None where nothing is absent."""
        return _ratio(self.false_positives, self.false_positives + self.true_negatives, index)

    def average_precision(self) -> float | None:
        """`average_precision` over all image-class pairs ranked together; None where nothing is present."""
        return average_precision(self.truth, self.probability)

    def calibration_error(self) -> float | None:
        """`expected_calibration_error` of all image-class pairs; None before the first image."""
        return expected_calibration_error(self.truth, self.probability) if self._truth else None

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(images x classes,) bool, image by image: which of the asked classes are present."""
        return np.concatenate([np.zeros(0, bool), *self._truth])

    @property
    def probability(self) -> NDArray[np.float64]:
        """(images x classes,) the probabilities, in the order of `truth`."""
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


def expected_calibration_error(truth: NDArray[np.bool_], probability: NDArray[np.float64], bins: int = 15) -> float:
    """How far probabilities are from frequencies: over bins of equal width, the mean of |share positive - mean
    probability|, weighted by their sizes (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Args:
        truth: bool (n,), n >= 1.
        probability: (n,) in [0, 1].

    Returns:
        In [0, 1].
    """
    which = np.minimum((probability * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(which, truth - probability, bins)).sum() / len(truth))


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64], index: int | slice | None) -> float | None:
    chosen = slice(None) if index is None else index
    numerator, denominator = part[chosen].sum(), whole[chosen].sum()
    return float(numerator / denominator) if denominator else None
