"""The default weights of presence (`lasagna/instant/presence.json`): from left-out answers on many data sets.

Of each set, some photos of the train split are taken as corrections, a few times over; each is left out in turn, as in
a project, and every answer about a class that the others have becomes one row: its features, and whether the class is
there. One logistic regression is fitted to all sets, each with the same weight. What always holds: only train splits
are read; a set's left-out figures are also given for weights that were fitted to the *other* sets alone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lab.bench.instant_curves import Eyes, encode_photo, observe_photo
from lasagna.instant.correction import Correction
from lasagna.instant.leave_out import Others, Shrinkage, leave_out, presence_answers
from lasagna.instant.presence import Figures, Presence, fit_presence
from lasagna.instant.statistics import Statistics
from training.data.sources.folder import Folder
from training.evaluation.metrics import average_precision, expected_calibration_error

COUNTS = (5, 10, 20)


@dataclass(frozen=True, eq=False)
class Answers:
    """The left-out answers of one set: features (n, F) and truths (n,)."""

    name: str
    features: Figures
    truth: NDArray[np.bool_]


def gather(eyes: Eyes, folder: Path, photos: int, advance: Callable[[], None] = lambda: None) -> Answers:
    """The answers of one set.

    Args:
        photos: Of the train split, the first of a random order; parts of 5, 10 and 20 of them are one project each.
        advance: Called for each photo.
    """
    data = Folder(folder, "train")
    corrections: list[Correction] = []
    for index in np.random.default_rng(7).permutation(len(data))[:photos]:
        photo = encode_photo(eyes, data, int(index))
        corrections.append(observe_photo(eyes, photo, data.classes, str(index)).numbered(len(corrections)))
        advance()
    found = []
    for count in COUNTS:
        for first in range(0, len(corrections) - count + 1, count):
            part = corrections[first : first + count]
            total = sum((each.statistics for each in part), Statistics.empty(part[0].statistics.channels))
            found.append(presence_answers(list(leave_out(Others(total, part), Shrinkage()))))
    features, truth = (np.concatenate(each) for each in zip(*found, strict=True))
    return Answers(data.name, features, truth)


def fit_defaults(sets: Sequence[Answers], unseen: Collection[str] = ()) -> Presence:
    """One regression for all sets, each counting as much as a project of the median number of answers.

    Args:
        unseen: Sets that the model was not trained on: together they count as much as the others, for the model's
            answer is worth less there, and a head is for such sets.
    """
    size = float(np.median([len(each.truth) for each in sets]))
    new = sum(each.name in unseen for each in sets)
    boost = (len(sets) - new) / new if 0 < new < len(sets) else 1.0
    weights = np.concatenate(
        [np.full(len(each.truth), (boost if each.name in unseen else 1) * size / len(each.truth)) for each in sets]
    )
    features, truth = (np.concatenate([getattr(each, key) for each in sets]) for key in ("features", "truth"))
    return fit_presence(features, truth, weights)


def left_out_figures(sets: Sequence[Answers], unseen: Collection[str] = ()) -> list[dict[str, float | str | None]]:
    """Of each set, with weights fitted to the others: average precision and calibration error."""
    rows: list[dict[str, float | str | None]] = []
    for each in sets:
        others = fit_defaults([other for other in sets if other is not each], unseen)
        p = others.probability(each.features)
        rows.append(
            {
                "set": each.name,
                "answers": len(each.truth),
                "present": float(each.truth.mean()),
                "ap": average_precision(each.truth, p),
                "ece": expected_calibration_error(each.truth, p),
            }
        )
    return rows
