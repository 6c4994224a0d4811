"""Class lists of training: what is asked about an annotated photo, and what is answered (`SequenceOptions`)."""

import random
from collections.abc import Sequence, Set
from dataclasses import dataclass

from training.recipe.sequence import SequenceOptions


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
