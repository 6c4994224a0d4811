"""Training sequences: the paper's three strategies (section 3.4) as switches.

An annotated photo becomes a question and its answer. `SequenceOptions` turns the rows of the paper's Table 5 on one by
one: LISA's baseline (one target per question), a class list, random classes list, sequence augmentation (negatives are
spelled out with `<NEG>`), target order consistency.
"""

import random
from collections.abc import Sequence, Set
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.recipe.fields import STRICT, Count, Positive, Rate, Switch

PRESETS: dict[str, dict[str, Any]] = {
    "lisa": {"class_list": False, "random_list": False, "negatives": False, "keep_order": False},
    "class_list": {"class_list": True, "random_list": False, "negatives": False, "keep_order": False},
    "random_list": {"class_list": True, "random_list": True, "negatives": False, "keep_order": False},
    "negatives": {"class_list": True, "random_list": True, "negatives": True, "keep_order": False},
    "order": {"class_list": True, "random_list": True, "negatives": True, "keep_order": True},
}
"""The rows of the paper's Table 5, each the one before and one strategy more; the last is LaSagnA."""


@dataclass(frozen=True, config=STRICT)
class SequenceOptions:
    """The strategies.

    Attributes:
        class_list: The question names many classes. Otherwise it names one that is present (LISA, arXiv 2308.00692),
            and the other switches have no effect.
        negatives: Sequence augmentation: classes that are absent are in the answer, with `<NEG>`.
        random_list: Random classes list: the question names a sampled subset, not every class of the data set.
        all_positives: How often, in [0, 1], a sampled subset holds every present class.
        keep_order: Target order consistency: the answer follows the question's order.
        most_answered: At most so many of the question's classes are in the answer: the present ones, then absent ones
            at random (as the released checkpoint was trained); None: all.
        lengths: How long random lists are: rows of (share of the batches, fewest, most names). All questions of a
            batch are from one row, so that little of it is padding.
    """

    class_list: Switch = True
    negatives: Switch = True
    random_list: Switch = True
    all_positives: Rate = 0.5
    keep_order: Switch = True
    most_answered: Count | None = None
    lengths: Annotated[tuple[tuple[Positive, Count, Count], ...], Field(min_length=1)] = ((1.0, 1, 40),)

    @model_validator(mode="after")
    def _ordered(self) -> "SequenceOptions":
        for _, fewest, most in self.lengths:
            if fewest > most:
                raise ValueError(f"lengths: fewest names come before most names; found {fewest} and {most}")
        return self

    def draw_lengths(self, rng: random.Random) -> tuple[int, int]:
        """The fewest and most names of a batch's questions."""
        _, low, high = rng.choices(self.lengths, weights=[share for share, *_ in self.lengths])[0]
        return low, high


@dataclass(frozen=True)
class ClassList:
    """One question: the names in question order, the indices of those that are answered, in answer order, and which of
    the names are present."""

    names: tuple[str, ...]
    present: tuple[bool, ...]
    answered: tuple[int, ...]

    def without(self, dropped: Set[str]) -> "ClassList":
        """The list without some names."""
        kept = [i for i, name in enumerate(self.names) if name not in dropped]
        return ClassList(
            tuple(self.names[i] for i in kept),
            tuple(self.present[i] for i in kept),
            tuple(kept.index(i) for i in self.answered if i in kept),
        )


def sample_class_list(
    positives: Sequence[str],
    negatives: Sequence[str],
    length: int,
    options: SequenceOptions,
    rng: random.Random,
) -> ClassList:
    """Samples the class list of one photo.

    Args:
        positives: Names present in the photo (or crop).
        negatives: Names certainly absent.
        length: Names in the question, where the list is random; fewer when there are not so many.
    """
    positives, negatives = list(positives), list(negatives)
    rng.shuffle(positives)
    rng.shuffle(negatives)
    if not options.class_list:
        one = positives[:1]
        return ClassList(tuple(one), (True,) * len(one), tuple(range(len(one))))
    if options.random_list:
        if rng.random() < options.all_positives:
            kept = positives[:length]
        else:
            pool = [(name, True) for name in positives] + [(name, False) for name in negatives]
            kept = [name for name, present in rng.sample(pool, min(length, len(pool))) if present]
        positives, negatives = kept, negatives[: max(0, length - len(kept))]
    listed = [(name, True) for name in positives] + [(name, False) for name in negatives]
    rng.shuffle(listed)
    order = list(range(len(listed)))
    if not options.keep_order:
        rng.shuffle(order)
    if not options.negatives:
        order = [i for i in order if listed[i][1]]
    if options.most_answered is not None and len(order) > options.most_answered:
        first = sorted(rng.sample(order, len(order)), key=lambda i: not listed[i][1])[: options.most_answered]
        order = [i for i in order if i in set(first)]
    return ClassList(tuple(name for name, _ in listed), tuple(present for _, present in listed), tuple(order))
