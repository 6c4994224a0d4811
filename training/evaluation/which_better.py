"""Which classes which of two models does better, in words and in figures: what one reads who chooses between them.

What always holds: "better" is what the paired bootstrap of the gate says of that class alone
(`training.evaluation.paired`), and is said only of classes in enough photos; every class that is in a held-out
annotation stands in exactly one place of each figure; a class that a model cannot be asked for is named besides.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.paired import Change, ClassChange

MASKS, PRESENCE = "masks", "presence"


@dataclass(frozen=True)
class BetterAt:
    """Classes by who is better at one figure, each in order of the difference, the largest first.

    Attributes:
        figure: `MASKS` (IoU) or `PRESENCE` (F1).
        champion, candidate: Names with the difference candidate - champion.
        neither: Names without a difference beyond chance.
    """

    figure: str
    champion: tuple[tuple[str, float], ...]
    candidate: tuple[tuple[str, float], ...]
    neither: tuple[str, ...]


@dataclass(frozen=True)
class WhichBetter:
    """The comparison, class by class.

    Attributes:
        figures: Of masks and of presence.
        few: Names in too few photos to say anything.
        unasked: Names that the champion, and that the candidate, cannot be asked for, with the photos that have them.
    """

    figures: tuple[BetterAt, ...]
    few: tuple[str, ...]
    unasked: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        figures = {
            one.figure: {"champion": dict(one.champion), "candidate": dict(one.candidate), "neither": [*one.neither]}
            for one in self.figures
        }
        unasked = {side: dict(names) for side, names in zip(("champion", "candidate"), self.unasked, strict=True)}
        return {**figures, "too few photos": [*self.few], "cannot be asked": unasked}

    def in_words(self, names: tuple[str, str] = ("champion", "candidate")) -> list[str]:
        """Sentences, each of one fact.

        Args:
            names: What the two are called.
        """
        said = []
        for one in self.figures:
            what = {MASKS: "draws", PRESENCE: "decides about presence"}[one.figure]
            for name, better in zip(names, (one.champion, one.candidate), strict=True):
                if better:
                    listed = ", ".join(f"{label} ({abs(by):.3f})" for label, by in better)
                    said.append(f"{name} {what} better: {listed}.")
            if one.neither and not (one.champion or one.candidate):
                said.append(f"Neither {what} better beyond chance in any of {len(one.neither)} classes.")
            elif one.neither:
                said.append(f"Neither {what} better beyond chance: {', '.join(one.neither)}.")
        if self.few:
            said.append(f"In too few photos to tell: {', '.join(self.few)}.")
        for name, unasked in zip(names, self.unasked, strict=True):
            if unasked:
                listed = ", ".join(f"{label} (in {photos})" for label, photos in unasked)
                said.append(f"{name} cannot be asked for {listed}: nothing drawn, and never an absence.")
        return said


def which_better(classes: Iterable[ClassChange]) -> WhichBetter:
    """Compares two models by the classes that the held-out annotations decide about."""
    every = list(classes)
    there = [one for one in every if one.photos]
    enough = [one for one in there if one.judged_alone]
    return WhichBetter(
        (_better_at(MASKS, enough, lambda one: one.iou), _better_at(PRESENCE, enough, lambda one: one.f1)),
        tuple(one.name for one in there if not one.judged_alone),
        (_unasked(every, 0), _unasked(every, 1)),
    )


def _unasked(classes: Sequence[ClassChange], side: int) -> tuple[tuple[str, int], ...]:
    return tuple((one.name, one.photos) for one in classes if one.unasked[side])


def _better_at(figure: str, classes: Sequence[ClassChange], of: Callable[[ClassChange], Change]) -> BetterAt:
    changes = [(one.name, of(one)) for one in classes]
    more = [(name, change.difference) for name, change in changes if change.is_more and change.difference is not None]
    less = [(name, change.difference) for name, change in changes if change.is_less and change.difference is not None]
    decided = {name for name, _ in more + less}
    return BetterAt(
        figure,
        tuple(sorted(less, key=lambda pair: pair[1])),
        tuple(sorted(more, key=lambda pair: -pair[1])),
        tuple(name for name, _ in changes if name not in decided),
    )
