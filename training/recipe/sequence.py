"""How training sequences are made: the paper's three strategies (section 3.4) as switches of a recipe.

`SequenceOptions` turns the rows of the paper's Table 5 on one by one: LISA's baseline (one target per question), a
class list, random classes list, sequence augmentation (negatives are spelled out with `<NEG>`), target order
consistency.
"""

import random
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
    """The paper's strategies, each a switch.

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
