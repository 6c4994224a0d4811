"""Figures of merit for texts with one mask: referring expressions, reasoning questions, and expressions that mean
several targets or none (gRefCOCO).

What always holds: void pixels count nowhere; a figure that is undefined is None. The definitions are those of
gRefCOCO's paper (GRES, arXiv 2306.00968, section 5.1) and of its published evaluation:

- **cIoU**: intersection over union of all samples together. Large targets weigh more. A sample without a target adds
  the pixels that were predicted to the union, and nothing where none was.
- **gIoU**: mean of the samples' own IoU; one without a target has 1 where nothing is predicted, else 0.
- **N-acc**: of the samples without a target, the share for which nothing was predicted.
- **T-acc**: of those with one, the share for which something was.

Where every sample has a target, as in RefCOCO and ReasonSeg, cIoU and gIoU are the usual ones.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISIONS = (0.5, 0.7, 0.9)


class TextMetrics:
    """Accumulates over samples, each one text about one image."""

    def __init__(self) -> None:
        self._intersection: list[int] = []
        self._union: list[int] = []
        self._iou: list[float] = []
        self._has_target: list[bool] = []
        self._answered: list[bool] = []

    def update(
        self, truth: NDArray[np.bool_], prediction: NDArray[np.bool_], known: NDArray[np.bool_] | None = None
    ) -> None:
        """Adds one sample.

        Args:
            truth: bool (H, W), the target; all False where nothing is meant.
            prediction: bool (H, W), the union of what was answered; all False is the answer "there is no such thing".
            known: bool (H, W), False where the annotation is void; None: everywhere known.
        """
        if truth.shape != prediction.shape or (known is not None and known.shape != truth.shape):
            raise ValueError(f"masks of one size expected, found {truth.shape} and {prediction.shape}")
        answered = bool(prediction.any())  # before void is taken off: an answer in void is an answer
        if known is not None:
            truth, prediction = truth & known, prediction & known
        has_target = bool(truth.any())
        both, either = int((truth & prediction).sum()), int((truth | prediction).sum())
        self._intersection.append(both)
        self._union.append(either)
        self._iou.append(both / either if has_target else float(not answered))
        self._has_target.append(has_target)
        self._answered.append(answered)

    def __len__(self) -> int:
        return len(self._iou)

    @property
    def ciou(self) -> float | None:
        """None where nothing is meant and nothing was predicted."""
        union = sum(self._union)
        return sum(self._intersection) / union if union else None

    @property
    def giou(self) -> float | None:
        return float(np.mean(self._iou)) if self._iou else None

    @property
    def no_target_accuracy(self) -> float | None:
        """N-acc; None where every sample has a target."""
        said = [not answered for answered, target in self._pairs() if not target]
        return float(np.mean(said)) if said else None

    @property
    def target_accuracy(self) -> float | None:
        """T-acc; None where no sample has a target."""
        said = [answered for answered, target in self._pairs() if target]
        return float(np.mean(said)) if said else None

    def precision_at(self, iou: float) -> float | None:
        """Pr@iou: of the samples with a target, the share whose IoU is at least so high."""
        found = [value >= iou for value, target in zip(self._iou, self._has_target, strict=True) if target]
        return float(np.mean(found)) if found else None

    def as_dict(self) -> dict[str, Any]:
        """The figures as they are written to JSON."""
        return {
            "samples": len(self),
            "without_target": self._has_target.count(False),
            "ciou": self.ciou,
            "giou": self.giou,
            "n_acc": self.no_target_accuracy,
            "t_acc": self.target_accuracy,
            **{f"precision_at_{iou}": self.precision_at(iou) for iou in PRECISIONS},
        }

    def _pairs(self) -> list[tuple[bool, bool]]:
        return list(zip(self._answered, self._has_target, strict=True))
