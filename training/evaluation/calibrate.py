"""Calibration: a model's margins on held-out photos to probabilities that can be believed (`lasagna calibrate`).

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines"): one temperature and one offset for all
classes, fitted on the photos that a recipe kept out of training. What always holds: every data set weighs the same,
however many classes and photos it has; the ranking of a question's answers does not change, only where "present"
begins.

A project's classes can each have an offset of their own besides (`fit_class_offsets`). Those are shrunk: a class of few
answers stays near the global offset, one of many goes where its answers are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lasagna.checkpoint.folder import Calibration
from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import DataError
from training.data.sources import Source
from training.evaluation.evaluate import evaluate_dataset
from training.evaluation.scores import ImageScore

CLASS_SPREAD = 0.5
"""How far offsets of classes are expected to be from the global one, as a standard deviation in units of the
temperature (logits). Half a logit turns a probability of 0.5 into 0.62."""

GLOBAL_SPREAD = 1.0
"""How far the global temperature (its logarithm) and offset of a fine-tuned model are expected to be from those of the
model that it started from; also a standard deviation."""


@dataclass(frozen=True)
class PresenceAnswers:
    """Presence answers on one data set, every class of the set asked of every photo.

    Attributes:
        margins: (N,) float64, logit(<SEG>) - logit(<NEG>).
        present: (N,) bool, the truth.
        precisions: Class -> the photos that have it, and the average precision of its presence; classes that no photo
            has are left out. {} where that was not looked at.
    """

    margins: NDArray[np.float64]
    present: NDArray[np.bool_]
    precisions: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def probabilities(self, calibration: Calibration) -> NDArray[np.float64]:
        logits = (self.margins - calibration.offset) / calibration.temperature
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def fit_calibration(sets: Sequence[PresenceAnswers], start: Calibration | None = None) -> Calibration:
    """The temperature and offset with the smallest binary cross-entropy, averaged per set, then over sets.

    Args:
        sets: The answers; each set that has any weighs the same.
        start: Calibration of the model that this one was fine-tuned from: few answers stay near it (a normal prior of
            the width `GLOBAL_SPREAD`). Without it, a handful of answers that happen to be separable would make every
            probability 0 or 1.

    Raises:
        DataError: There is no present or no absent answer, or larger margins do not mean that a class is more often
            present: such a model has nothing to calibrate. With a start, there is no answer at all.
    """
    from scipy.optimize import minimize

    sets = [answers for answers in sets if len(answers.present)]  # the model knows no class of the others
    everything = np.concatenate([answers.present for answers in sets]) if sets else np.zeros(0, bool)
    if not everything.size or (start is None and (everything.all() or not everything.any())):
        raise DataError(
            f"calibration needs present and absent answers; found {everything.sum()} present ones of "
            f"{everything.size}: hold more photos out, of classes that the model can be asked for"
        )

    def cross_entropy(scale: float, shift: float) -> float:
        return float(np.mean([_cross_entropy(scale * one.margins + shift, one.present).mean() for one in sets]))

    if start is not None:
        weight = 1 / (2 * GLOBAL_SPREAD**2 * everything.size)

        def shrunk(values: NDArray[np.float64]) -> float:
            log_ratio, shift = values
            scale = np.exp(log_ratio) / start.temperature
            return cross_entropy(scale, shift - start.offset * scale) + weight * float(values @ values)

        log_ratio, shift = minimize(shrunk, np.zeros(2), method="L-BFGS-B").x
        temperature = start.temperature / float(np.exp(log_ratio))
        return Calibration(temperature, start.offset - float(shift) * temperature)

    scale, shift = minimize(lambda values: cross_entropy(*values), np.array([1.0, 0.0]), method="L-BFGS-B").x
    if not scale > 1e-3:
        raise DataError(
            f"classes with larger margins are not more often present (fitted slope {scale:.3g}): it does not "
            "know these classes; train the model first, or take photos of what it knows"
        )
    return Calibration(temperature=1 / float(scale), offset=-float(shift / scale))


def fit_class_offsets(
    answers: Mapping[str, PresenceAnswers],
    calibration: Calibration,
    spread: float = CLASS_SPREAD,
    others: float | None = None,
) -> Calibration:
    """An offset for every class with answers, besides the global temperature and offset, which stay.

    The offset d of a class minimises its summed binary cross-entropy plus (d / (spread * temperature))^2 / 2: the most
    probable value where the offsets of classes are spread normally about the global one. The sum grows with the answers
    and the second term does not, so a class moves the farther the more held-out answers it has.

    Args:
        answers: Of each class, by the name that the model reads (`answers_by_class`).
        calibration: The global values; offsets of classes that it has are forgotten.
        spread: See `CLASS_SPREAD`; 0: no class moves.
        others: The offset for classes without answers, where the global one was fitted on these classes alone and says
            nothing of others; None: the global one.
    """
    from scipy.optimize import minimize_scalar

    offsets = {}
    for name, one in answers.items():
        logits = (one.margins - calibration.offset) / calibration.temperature

        def loss(shift: float, logits: NDArray[np.float64] = logits, present: NDArray[np.bool_] = one.present) -> float:
            return float(_cross_entropy(logits - shift, present).sum() + (shift / spread) ** 2 / 2)

        if spread > 0 and len(logits):
            offsets[name] = float(minimize_scalar(loss).x) * calibration.temperature
    if others is not None:
        apart = calibration.offset - others
        return replace(
            calibration, offset=others, class_offsets={name: apart + offsets.get(name, 0.0) for name in answers}
        )
    return replace(calibration, class_offsets=offsets)


def answers_by_class(
    scores: Iterable[ImageScore], calibration: Calibration, read_text: Callable[[str], str] = str
) -> dict[str, PresenceAnswers]:
    """The answers of scored photos, class by class.

    Args:
        scores: Of one model (`training.evaluation.scores`).
        calibration: That model's own, to take its probabilities back to margins.
        read_text: From the name of a class to the text that offsets go by: the model's `Lasagna.read_text`.
    """
    found: dict[str, list[tuple[float, bool]]] = {}
    for score in scores:
        for one in score.classes:
            name = read_text(one.name)
            offset = calibration.offset + calibration.class_offsets.get(name, 0.0)
            margin = float(logits_of(np.array(one.probability))) * calibration.temperature + offset
            found.setdefault(name, []).append((margin, one.present))
    return {
        name: PresenceAnswers(
            np.array([margin for margin, _ in rows]), np.array([present for _, present in rows], bool)
        )
        for name, rows in found.items()
    }


def _cross_entropy(logits: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The cross-entropy of each answer, in nats."""
    return np.logaddexp(0, np.where(present, -logits, logits))


def logits_of(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """float32 probabilities end at 1: beyond the borders that they are cut at here, a margin says no more."""
    probability = probability.clip(1e-7, 1 - 1e-7)
    return np.log(probability) - np.log1p(-probability)


def collect_answers(
    model: ClassListAnswerer, source: Source, calibration: Calibration, on_image: Callable[[], None] = lambda: None
) -> PresenceAnswers:
    """Asks a data set as `evaluate_dataset` does.

    Args:
        calibration: The model's own, to take its probabilities back to margins.
    """
    found = evaluate_dataset(model, source, on_image=on_image).presence
    photos = found.true_positives + found.false_negatives
    shown = {name: i for i, name in enumerate(source.classes) if photos[i]}
    precisions = {name: (int(photos[i]), found.average_precision([i]) or 0.0) for name, i in shown.items()}
    margins = logits_of(found.probability) * calibration.temperature + calibration.offset
    return PresenceAnswers(margins, found.truth, precisions)


def mean_precisions(sets: Sequence[PresenceAnswers]) -> dict[str, float]:
    """The average precision of each class: the mean over the sets that have it, weighed by their photos with it."""
    weights: dict[str, int] = {}
    sums: dict[str, float] = {}
    for answers in sets:
        for name, (photos, precision) in answers.precisions.items():
            weights[name] = weights.get(name, 0) + photos
            sums[name] = sums.get(name, 0.0) + photos * precision
    return {name: sums[name] / photos for name, photos in weights.items()}
