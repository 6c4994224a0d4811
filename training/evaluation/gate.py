"""The gate: may a candidate take the champion's place?

`judge` compares the scores of two models on the same photos and answers with every reason in words. What always holds:

- the photos were in no training set (whoever calls sees to that), and both models were asked the same;
- mIoU is the mean over the classes that the held-out annotations have: the same classes for both models. A class that
  is said without being there is judged by the rules of presence, one that a model cannot be asked for is not drawn;
- "better" and "worse" are what a paired bootstrap over the photos says (`lasagna.bootstrap`): the whole interval of the
  difference lies on one side of zero;
- a rule that cannot be judged for lack of photos says so. Too few held-out photos fail; a missing replay set does not.

The rules, and why they are as they are: docs/gate.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasagna.bootstrap import bootstrap_counts, percentile_interval
from lasagna.errors import DataError
from training.evaluation.paired import Change, ClassChange, Flip, Pair, sign_test
from training.evaluation.scores import ImageScore, Latency
from training.evaluation.which_better import WhichBetter, which_better


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to.

    Attributes:
        resamples: Draws of the bootstrap.
        confidence: Share of the draws that an interval holds, and 1 - the level of the tests of false positives.
        seed: Of the draws.
        least_photos: Held-out photos below which nothing is promoted: four photos that all gain by chance are one
            case in sixteen.
        class_tolerance: IoU that a class may lose.
        class_photos: Held-out photos with a class from which on it is judged by itself; the classes with fewer are
            judged together, by the mean of their IoUs.
        replay_tolerance: mIoU that may be lost on the replay photos.
        replay_presence_tolerance: F1 of presence that may be lost there. Wider, as a calibration that fits the
            project moves decisions elsewhere, and a decision is all or nothing.
        latency_factor: Times the champion's seconds for the same work that the candidate may take.
        latency_seconds: Seconds per photo that it may take in any case; None: no such limit. Both are exceeded where
            the whole interval lies above them.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    least_photos: int = 4
    class_tolerance: float = 0.05
    class_photos: int = 3
    replay_tolerance: float = 0.02
    replay_presence_tolerance: float = 0.05
    latency_factor: float = 1.5
    latency_seconds: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.confidence < 1 and min(self.resamples, self.least_photos, self.class_photos) >= 1):
            raise ValueError(f"confidence is in (0, 1), and draws and photos are at least 1: {self}")


@dataclass(frozen=True)
class Reason:
    """What one rule says."""

    rule: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """The answer of the gate.

    Attributes:
        reasons: Of every rule, in the order of docs/gate.md.
        photos: Held-out photos, and replay photos.
        figures: `miou`, `f1` and `false_positive_rate` of the held-out photos, `replay_miou` and `replay_f1`.
        classes: Those that the held-out annotations decide about, in the order of the query.
        flips: Every decision on the held-out photos that changed.
        answers: Truth and probability of each decision of champion and candidate, (truth, champion, candidate) each
            (n,), where both could be asked: for the reliability plot.
    """

    reasons: tuple[Reason, ...]
    photos: tuple[int, int]
    figures: Mapping[str, Change]
    classes: tuple[ClassChange, ...]
    flips: tuple[Flip, ...]
    latency: Latency | None
    limits: Limits
    answers: tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]] = field(repr=False)

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)

    def in_words(self) -> str:
        """One paragraph: the outcome, and what decided it."""
        failed = [reason for reason in self.reasons if not reason.passed]
        if not failed:
            return "Passed: " + next(reason.text for reason in self.reasons if reason.rule == "better")
        return "Not promoted: " + " ".join(reason.text for reason in failed)

    @property
    def which_better(self) -> WhichBetter:
        """Which classes which of the two does better."""
        return which_better(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Everything but `answers`, as it is written to JSON."""
        values = asdict(self, dict_factory=lambda pairs: {key: value for key, value in pairs if key != "answers"})
        better = self.which_better
        return {
            "passed": self.passed,
            "summary": self.in_words(),
            "better": {**better.as_dict(), "words": better.in_words()},
            **values,
        }


def judge(
    champion: Sequence[ImageScore],
    candidate: Sequence[ImageScore],
    replay_champion: Sequence[ImageScore] = (),
    replay_candidate: Sequence[ImageScore] = (),
    latency: Latency | None = None,
    limits: Limits | None = None,
) -> Verdict:
    """Whether the candidate may take the champion's place.

    Args:
        champion: Scores on the held-out photos.
        candidate: Of the same photos and classes; in any order.
        replay_champion: Scores on photos of what the champion knew before.
        replay_candidate: Of the same photos and classes.
        latency: Of both models, measured side by side; None: not judged.
        limits: None: the defaults.

    Raises:
        DataError: The two were scored on different photos, or asked for different classes of one; no photo.
    """
    limits = limits or Limits()
    held = Pair(champion, candidate, limits, "held-out")
    if not held.images:
        raise DataError("the gate needs held-out photos with annotations; there is none")
    replay = Pair(replay_champion, replay_candidate, limits, "replay")
    classes = held.classes(limits.class_photos)
    reasons = [
        _enough_photos(held, limits),
        *_cannot_be_asked(classes),
        _better(held),
        *_no_class_lost(held, classes, limits),
        *_no_false_positives(held, classes, limits),
        *_replay(replay, limits),
        _latency(latency, limits),
    ]
    figures = {"miou": held.miou, "f1": held.f1, "false_positive_rate": held.false_positive_rate}
    if replay.images:
        figures |= {"replay_miou": replay.miou, "replay_f1": replay.f1}
    return Verdict(
        tuple(reasons),
        (held.images, replay.images),
        figures,
        tuple(classes),
        tuple(held.flips()),
        latency,
        limits,
        held.answers(),
    )


# --- The rules --------------------------------------------------------------------------------------------------------


def _enough_photos(held: Pair, limits: Limits) -> Reason:
    enough = held.images >= limits.least_photos
    words = "" if enough else f"; fewer than {limits.least_photos} cannot tell a gain from chance"
    return Reason("photos", enough, f"{_count(held.images, 'held-out photo')}{words}.")


def _cannot_be_asked(classes: Sequence[ClassChange]) -> list[Reason]:
    """No rule refuses for it by itself: what is not drawn counts in the others."""
    reasons = []
    for side, name in enumerate(("champion", "candidate")):
        lacking = [f"{one.name} (in {_count(one.photos, 'photo')})" for one in classes if one.unasked[side]]
        if lacking:
            text = f"The {name} cannot be asked for {', '.join(lacking)}: counted as not drawn, never as absent."
            reasons.append(Reason("cannot be asked", True, text))
    return reasons


def _better(held: Pair) -> Reason:
    both = {"mIoU": held.miou, "F1 of presence": held.f1}
    words = ", ".join(f"{name} {change.in_words()}" for name, change in both.items())
    worse = [name for name, change in both.items() if change.is_less]
    better = [name for name, change in both.items() if change.is_more]
    if worse:
        return Reason("better", False, f"{' and '.join(worse)} got worse: {words}.")
    if not better:
        return Reason("better", False, f"Neither mIoU nor presence is better beyond chance: {words}.")
    return Reason("better", True, f"{' and '.join(better)} got better, nothing worse: {words}.")


def _no_class_lost(held: Pair, classes: Sequence[ClassChange], limits: Limits) -> list[Reason]:
    def lost(change: Change) -> bool:
        return change.is_less and change.difference is not None and change.difference < -limits.class_tolerance

    alone = [one for one in classes if one.judged_alone]
    reasons = [
        Reason("class", False, f"{one.name} lost more than {limits.class_tolerance:g} IoU: {one.iou.in_words()}.")
        for one in alone
        if lost(one.iou)
    ]
    if not reasons:
        words = f"None of {_count(len(alone), 'class', 'classes')} lost more than {limits.class_tolerance:g} IoU"
        reasons.append(Reason("class", True, f"{words} beyond chance."))
    rare = [one for one in classes if one.photos and not one.judged_alone]
    if rare:
        mean = held.mean_iou([one.name for one in rare])
        what = f"{_count(len(rare), 'class', 'classes')} in fewer than {limits.class_photos} photos, taken together"
        verb = f"lost more than {limits.class_tolerance:g} IoU" if lost(mean) else "kept their mean IoU"
        reasons.append(Reason("rare classes", not lost(mean), f"{what}, {verb}: {mean.in_words()}."))
    return reasons


def _no_false_positives(held: Pair, classes: Sequence[ClassChange], limits: Limits) -> list[Reason]:
    rate = held.false_positive_rate
    reasons = []
    if rate.is_more:
        reasons.append(Reason("false positives", False, f"Absent classes are said more often: {rate.in_words()}."))
    for one in classes:
        new, gone = held.false_positive_changes(one.name)
        if sign_test(new, gone) < 1 - limits.confidence:
            text = f"{one.name} is said in {_count(new, 'photo')} more that lack it, and in {gone} fewer"
            reasons.append(Reason("false positives", False, f"{text}: more than chance."))
    if not reasons:
        words = f"their share is {rate.in_words()}" if rate.champion is not None else "nothing is absent"
        reasons.append(
            Reason("false positives", True, f"Absent classes are not said more often beyond chance: {words}.")
        )
    return reasons


def _replay(replay: Pair, limits: Limits) -> list[Reason]:
    if not replay.images:
        return [Reason("replay", True, "No replay photos: what may be forgotten was not measured.")]
    reasons = []
    for name, change, tolerance in (
        ("mIoU", replay.miou, limits.replay_tolerance),
        ("F1 of presence", replay.f1, limits.replay_presence_tolerance),
    ):
        kept = change.difference is None or change.difference >= -tolerance
        verb = "may lose" if kept else "lost more than"
        where = f"On {_count(replay.images, 'replay photo')} {name} {verb} {tolerance:g}"
        reasons.append(Reason("replay", kept, f"{where}: {change.in_words()}."))
    return reasons


def _latency(latency: Latency | None, limits: Limits) -> Reason:
    if latency is None:
        return Reason("latency", True, "Latency was not measured.")
    draws = bootstrap_counts(len(latency.pairs), limits.resamples, limits.seed)
    low, high = percentile_interval(latency.factor(draws), limits.confidence) or (0.0, 0.0)
    times = f"{latency.factor()[0]:.2f} times (interval {low:.2f} to {high:.2f})"
    text = f"{latency.champion:.3f} s → {latency.candidate:.3f} s per photo, {times}"
    if low > limits.latency_factor:
        return Reason("latency", False, f"{text}: over the budget of {limits.latency_factor:g} times the champion's.")
    least, _ = percentile_interval(latency.seconds(draws), limits.confidence) or (0.0, 0.0)
    if limits.latency_seconds is not None and least > limits.latency_seconds:
        return Reason("latency", False, f"{text}: over the limit of {limits.latency_seconds:g} s.")
    return Reason("latency", True, f"{text}: within the budget of {limits.latency_factor:g} times the champion's.")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
