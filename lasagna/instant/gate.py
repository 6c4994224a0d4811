"""May the head draw the masks? Decided again at every correction, from photos left out in turn; nothing is held out.

It may, in place of the model, where on the corrected photos

    there are at least `FEWEST` of them (a class that one photo alone has is unknown when that photo is left out),
    mIoU is higher: its gain is above 0 in 95 % of 1000 draws of the photos (bootstrap, Efron 1979), and
    pixels are better: accuracy is higher by .03, or a quarter of the wrong pixels is gone, and by more than one
    standard error of the photos' differences either way; or no worse, where mIoU's gain is above `CLEAR_GAIN` in 95 %
    of the draws: of small things nearly every pixel is right before and after.

The second and third guard against one another: mIoU rewards a rare class that is right once, accuracy the background.
What always holds: fewer photos, or photos on which the model was trained, never let the head in; the decision says why
in words.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lasagna.bootstrap import bootstrap_counts
from lasagna.instant.tally import Tally

FEWEST = 5
LEAST_GAIN = 0.03
LEAST_SHARE = 0.25
CLEAR_GAIN = 0.05
_DRAWS = 1000


@dataclass(frozen=True)
class Decision:
    """What the gate says, and from what.

    Attributes:
        serves: Whether the head draws.
        corrections: How many photos were learnt from.
        compared: On how many of them the two were compared.
        since: The number of corrections from which on it has served without a break; None: it does not.
        model, head: mIoU of the two on these photos; None where there was nothing to compare.
        low, high: The middle 90 % of the draws' gain.
        accuracy_gain: Mean of the photos' differences.
        reason: In words.
    """

    serves: bool
    corrections: int
    compared: int = 0
    since: int | None = None
    model: float | None = None
    head: float | None = None
    low: float | None = None
    high: float | None = None
    accuracy_gain: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Decision":
        return cls(**values)


def decide(
    model: Sequence[Tally], head: Sequence[Tally], corrections: int, previous: Decision | None = None
) -> Decision:
    """Compares two answers to the same photos.

    Args:
        model, head: Of each photo, in one order.
        corrections: Photos that were learnt from.
        previous: The last decision, for "since".
    """
    compared = len(model)
    if compared < FEWEST:
        number = f"{corrections} correction{'s' * (corrections != 1)} so far"
        if corrections >= FEWEST:  # it was trained on the others
            number = f"{compared} of {corrections} corrections say how good the model is"
        return Decision(False, corrections, compared, reason=f"the model draws: {number}, at least {FEWEST} are needed")
    before, after = Tally.of(model), Tally.of(head)
    draws = bootstrap_counts(compared, _DRAWS)
    moved = after.miou(draws) - before.miou(draws)
    if np.isnan(moved).all():
        reason = "the model draws: the corrected photos that say how good it is have none of the classes"
        return Decision(False, corrections, compared, reason=reason)
    low, high = (float(value) for value in np.nanquantile(moved, (0.05, 0.95)))
    old, new = float(before.miou()[0]), float(after.miou()[0])
    differences = after.accuracy - before.accuracy
    gain = float(differences.mean())
    error = float(differences.std(ddof=1) / math.sqrt(compared))
    wrong = float((1 - before.accuracy).mean())
    better = (gain >= LEAST_GAIN or gain >= LEAST_SHARE * wrong > 0) and gain > error
    no_worse = low >= CLEAR_GAIN and gain >= 0
    serves = low > 0 and (better or no_worse)
    since = None
    if serves:
        since = previous.since if previous is not None and previous.serves else corrections
    figures = f"{new - old:+.2f} mIoU ({low:+.2f} to {high:+.2f}) on the corrected photos, each left out in turn"
    if serves:
        reason = f"serves since correction {since}: {figures}"
    elif not low > 0:
        reason = f"the model draws: the head would give {figures}"
    else:
        reason = f"the model draws: the head would give {figures}, but {gain:+.1%} right pixels"
        reason += f" (needed: {LEAST_GAIN:+.0%}, or {LEAST_SHARE:.0%} of the wrong ones, and more than {error:.1%}; "
        reason += f"or no fewer, with at least {CLEAR_GAIN:+.2f} mIoU)"
    return Decision(serves, corrections, compared, since, old, new, low, high, gain, reason)
