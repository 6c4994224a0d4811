"""What the head would have said of each corrected photo, had it not learnt from it.

Statistics are exact, so a photo is left out by subtraction, and the discriminant fitted again (milliseconds). From the
answers on the left-out photos everything is chosen without holding a photo out: the shrinkage and the weight of the
priors, the calibration of presence, how head and model are combined, and whether the result may serve at all.

What always holds: a photo's own pixels touch none of the weights that it is judged with, but for the few figures that
are fitted to all left-out answers together; classes that the photo was not asked for are undecided in it; the model is
judged by the answer that it would have given, on the same cells.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.instant.correction import Correction, Summary
from lasagna.instant.discriminant import PRIORS, SHRINKAGES, Discriminant, moments
from lasagna.instant.presence import HEAD_FEATURES, PRESENT_FROM, Figures, Presence, model_logit, sample_features
from lasagna.instant.stacking import Stacking, combine, head_log, model_log
from lasagna.instant.statistics import NONE, Statistics
from lasagna.instant.tally import Tally, tally

MOST = 40
"""Photos that are left out in turn: the newest."""
_MOST_FOR_SHRINKAGE = 12
"""Of these, the photos that the shrinkage and the priors are chosen by: each costs four factorisations."""
LARGEST_UNSEEN, LEAST_UNSEEN = 0.3, 0.005


@dataclass(frozen=True, eq=False)
class LeftOut:
    """One photo, and what a head of the others says of it.

    Attributes:
        correction: The photo.
        seen: bool (C + 1,): classes of the photo's list, and last "none", which the others have.
        scores: float32 (C + 1, n), the discriminant's with its prior; unseen classes are not read.
        features: (C, 4 or 5) of presence; of unseen classes only the model's logit can be read.
    """

    correction: Correction
    seen: Tensor
    scores: Tensor
    features: Figures


@dataclass(frozen=True)
class Shrinkage:
    """lambda and the exponent of the priors; see `lasagna.instant.discriminant`."""

    value: float = 1.0
    prior: float = 0.5


class Others:
    """The discriminants of the newest photos' *others*, each solved once.

    Args:
        total: The sum of all corrections' statistics.
        photos: The newest, in order of time.
    """

    def __init__(self, total: Statistics, photos: Sequence[Correction]) -> None:
        self.total = total
        # Leaving out the only photo with a decided pixel leaves nothing.
        self.photos = [photo for photo in photos if total.pixels > photo.statistics.pixels]
        self._solved: dict[tuple[str, float], Discriminant] = {}

    def solve(self, photo: Correction, values: Sequence[float]) -> list[Discriminant]:
        """One for each lambda."""
        missing = [value for value in values if (photo.id, value) not in self._solved]
        if missing:
            of_others = moments(self.total - photo.statistics)
            self._solved |= {(photo.id, value): of_others.solve(value) for value in missing}
        return [self._solved[photo.id, value] for value in values]


def choose_shrinkage(others: Others) -> Shrinkage:
    """The best of a small grid, by the mIoU plus accuracy of the head alone on the newest photos."""
    photos = others.photos[-_MOST_FOR_SHRINKAGE:]
    universe = class_universe(photos)
    counts: dict[Shrinkage, list[Tally]] = {Shrinkage(value, prior): [] for value in SHRINKAGES for prior in PRIORS}
    for photo in photos:
        samples, counter = photo.samples.float(), _Counter(photo, universe)
        for value, discriminant in zip(SHRINKAGES, others.solve(photo, SHRINKAGES), strict=True):
            rows, seen = _rows(discriminant, photo.classes)
            plain = samples @ discriminant.weight[rows].T + discriminant.bias[rows]
            for prior in PRIORS:
                scores = plain + prior * discriminant.log_prior[rows]
                said = (
                    seen.nonzero()[:, 0][scores.max(1).indices]
                    if len(rows)
                    else photo.truth.new_full(photo.truth.shape, len(photo.classes))
                )
                counts[Shrinkage(value, prior)].append(counter.tally(said))
    default = Shrinkage()
    if not photos:
        return default
    # The default wins ties.
    return max(counts, key=lambda each: (round(Tally.of(counts[each]).score(), 9), each == default))


def leave_out(others: Others, shrinkage: Shrinkage) -> Iterator[LeftOut]:
    """Each of the newest photos, left out."""
    for photo in others.photos:
        discriminant = others.solve(photo, [shrinkage.value])[0]
        rows, seen = _rows(discriminant, photo.classes)
        scores = torch.zeros(len(photo.classes) + 1, len(photo.truth))
        offsets = discriminant.offsets(shrinkage.prior)
        scores[seen] = (photo.samples.float() @ discriminant.weight[rows].T + offsets[rows]).T
        yield LeftOut(photo, seen, scores, _presence_features(photo, seen, scores))


def unseen_share(corrections: Sequence[Summary]) -> float:
    """u: the chance that a pixel of the next photo is of a class that no correction has (Good 1953).

    Estimated by the share of pixels that are of a class which no *other* photo has, photo by photo.
    """
    having = Counter(name for correction in corrections for name in correction.counts)
    shares = [
        sum(count for name, count in correction.counts.items() if having[name] == 1) / sum(correction.counts.values())
        for correction in corrections
        if correction.counts
    ]
    mean = sum(shares) / len(shares) if shares else 1.0
    return min(LARGEST_UNSEEN, max(LEAST_UNSEEN, mean))


def class_universe(corrections: Sequence[Correction]) -> dict[str, int]:
    """An index for every class that a correction decides about."""
    names = sorted({name for correction in corrections for name in correction.classes})
    return {name: i for i, name in enumerate(names)}


def presence_answers(photos: Sequence[LeftOut], *, unseen: bool = False) -> tuple[Figures, NDArray[np.bool_]]:
    """Features (m, F) and truths (m,) of every class that the others have, photo by photo.

    Args:
        unseen: Of the classes that the others do *not* have instead, the model's logit alone: (m, 1).
    """
    features, truth = [], []
    for photo in photos:
        chosen = photo.seen[:-1].numpy() != unseen
        features.append(photo.features[chosen][:, HEAD_FEATURES if unseen else 0 :])
        truth.append(photo.correction.present.numpy()[chosen])
    return np.concatenate(features), np.concatenate(truth)


def stacked_presence(
    presence: Presence, unseen: Presence | None, features: Figures, seen: NDArray[np.bool_]
) -> Figures:
    """Probabilities of classes, (C,).

    Args:
        unseen: Of classes that no correction has, on the model's logit; None: there is no model, and they are absent.
        features: (C, F); of unseen classes only the model's logit is read.
        seen: bool (C,): classes that a correction has.
    """
    result: Figures = np.full(len(seen), 0.01)
    if unseen is not None:
        result[~seen] = unseen.probability(features[~seen][:, HEAD_FEATURES:])
    result[seen] = presence.probability(features[seen])
    return result


def tally_stacks(
    photo: LeftOut, stackings: Sequence[Stacking], probability: Figures, u: float, universe: dict[str, int]
) -> list[Tally]:
    """The counts of a photo as a head would have drawn it, for each way of stacking.

    Args:
        probability: Of `stacked_presence`.
    """
    counter, answer = _Counter(photo.correction, universe), photo.correction.answer
    competing = torch.from_numpy(probability >= PRESENT_FROM)
    chosen = torch.cat([competing, torch.tensor([True])])
    head = head_log(photo.scores, photo.seen, u)[chosen]
    model = None
    if answer is not None:
        model = model_log(answer.probability[competing], answer.mask_logits.T[competing].float())
    prior = torch.from_numpy(np.log(probability)).float()[competing][:, None]
    place = chosen.nonzero()[:, 0]
    tallies = []
    for stacking in stackings:
        combined = combine(stacking, model, head).clone()
        combined[:-1] += prior
        tallies.append(counter.tally(place[combined.max(0).indices]))
    return tallies


def tally_model(correction: Correction, universe: dict[str, int]) -> Tally:
    """The counts of a photo as the model draws it: the largest positive mask logit of the classes it says."""
    answer = correction.answer
    assert answer is not None
    logits = answer.mask_logits.float().T.clone()
    logits[~answer.said] = float("-inf")
    every = torch.cat([logits, torch.zeros(1, logits.shape[1])])
    return _Counter(correction, universe).tally(every.max(0).indices)


class _Counter:
    """Counts answers to one photo."""

    def __init__(self, correction: Correction, universe: dict[str, int]) -> None:
        self._classes = len(universe)
        self._place = np.array([*(universe[name] for name in correction.classes), self._classes])
        self._truth = self._place[correction.truth.numpy()]
        self._weight = correction.weight.double().numpy()

    def tally(self, said: Tensor) -> Tally:
        """Of int64 (n,), indices into the photo's classes."""
        return tally(self._truth, self._place[said.numpy()], self._weight, self._classes)


def _rows(discriminant: Discriminant, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Rows of the discriminant for the seen ones of `classes` and "none", and which those are: bool (C + 1,)."""
    place = {name: i for i, name in enumerate(discriminant.names)}
    every = [*classes, NONE]
    seen = torch.tensor([name in place for name in every])
    return torch.tensor([place[name] for name in every if name in place], dtype=torch.long), seen


def _presence_features(correction: Correction, seen: Tensor, scores: Tensor) -> Figures:
    features: Figures = np.zeros((len(correction.classes), HEAD_FEATURES))
    if bool(seen.any()) and scores.shape[1]:
        own = sample_features(scores[seen], correction.weight)
        known = seen[:-1].numpy()
        features[known] = own[: int(known.sum())]
    if correction.answer is None:
        return features
    return np.column_stack([features, model_logit(correction.answer.probability.double().numpy())])
