"""`lasagna experiment order`: does a prediction's score put the tasks first that need most work?

Every photo of a split is pre-labelled; what a person would have to do about it is counted against the truth. What
always holds: an order sees the answers alone, never the truth; random order is exact, not drawn: a quarter of the
photos has a quarter of the work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lasagna.assistant.lasagna import Lasagna
from lasagna.contract.model import ClassListAnswerer
from lasagna.masks.ordering import expected_edits
from lasagna.masks.segmentation import Segmentation
from training.data.records import UNKNOWN, LabelMap
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.scoring import read_photo, score_photo

ACCEPT = 0.8
"""IoU with the truth from which on a person leaves a region alone."""


def _presence(answer: Segmentation) -> float:
    """Expected number of wrong decisions about presence."""
    return sum(min(one.probability, 1 - one.probability) for one in answer.classes)


def _masks(answer: Segmentation) -> float:
    """Expected changes of the masks."""
    return sum(1 - one.stability for one in answer.present if one.stability is not None)


def _confidence(answer: Segmentation) -> float:
    """The mean probability of the present classes, least first."""
    found = [one.probability for one in answer.present]
    return -float(np.mean(found)) if found else 0.0


ORDERS: Mapping[str, Callable[[Segmentation], float]] = {
    "expected edits": expected_edits,
    "presence alone": _presence,
    "masks alone": _masks,
    "mean probability": _confidence,
}
"""What each order sorts by, most first. The first is the product's."""


@dataclass(frozen=True)
class Ordering:
    """How well one order works on one data set.

    Attributes:
        rank_correlation: Spearman's, with the edits that are needed, in [-1, 1].
        first_quarter: Share of all edits that the first quarter of the photos needs; 0.25 in random order.
        interval: 95 % of that share, from a bootstrap over photos.
    """

    rank_correlation: float
    first_quarter: float
    interval: tuple[float, float]


def needed_edits(answer: Segmentation, truth: LabelMap, accept: float = ACCEPT) -> int:
    """Regions that a person has to add, delete or change.

    Args:
        answer: Its classes are those of the truth, in order.
        truth: The label map of the photo.
        accept: IoU from which on a region is left alone.
    """
    edits = 0
    for one in score_photo(truth, answer).classes:
        if one.present and one.said:
            edits += one.intersection < accept * one.union
        else:
            edits += one.present != one.said
    return edits


def measure_orders(
    model: ClassListAnswerer, source: Source, limit: int | None, on_image: Callable[[], None] = lambda: None
) -> tuple[float, dict[str, Ordering]]:
    """Edits per photo, and what each of `ORDERS` makes of them; see `Ordering`.

    Args:
        limit: At most so many photos, evenly spread.
    """
    needed, keys = [], []
    for index in spread(len(source), limit):
        record = source[index]
        photo, truth = read_photo(record)
        [answer] = model.segment_batch([photo], [list(record.classes)])
        needed.append(needed_edits(answer, truth))
        keys.append([order(answer) for order in ORDERS.values()])
        on_image()
    edits = np.array(needed, float)
    table = np.array(keys)
    return float(edits.mean()), {name: _judge(table[:, i], edits) for i, name in enumerate(ORDERS)}


def model_with_head(
    model: Lasagna, train: Folder, corrections: int, choice: int, on_image: Callable[[], None] = lambda: None
) -> None:
    """Lets a model learn the first photos of a random order of a train split, as corrections; it keeps no other head.

    Args:
        choice: Seed of the order.
    """
    model.use_head(None)
    for index in np.random.default_rng(choice).permutation(len(train))[:corrections]:
        photo, truth = read_photo(train[int(index)])
        masks = {name: (truth == i).any(0) for i, name in enumerate(train.classes)}
        model.learn(photo, masks, undecided=(truth == UNKNOWN).any(0))
        on_image()


def mean_ordering(measured: Sequence[tuple[float, Mapping[str, Ordering]]]) -> tuple[float, dict[str, Ordering]]:
    """The means of several `measure_orders`, of each figure and each end of the interval."""
    edits = float(np.mean([each for each, _ in measured]))
    orders = {}
    for name in measured[0][1]:
        of_each = [found[name] for _, found in measured]
        low, high = (float(np.mean([one.interval[end] for one in of_each])) for end in (0, 1))
        orders[name] = Ordering(
            float(np.mean([one.rank_correlation for one in of_each])),
            float(np.mean([one.first_quarter for one in of_each])),
            (low, high),
        )
    return edits, orders


def _judge(key: NDArray[np.float64], edits: NDArray[np.float64], resamples: int = 1000) -> Ordering:
    rng = np.random.default_rng(1)
    shares = [
        _first_quarter(key[chosen], edits[chosen])
        for chosen in rng.integers(0, len(key), (resamples, len(key)))
        if edits[chosen].any()
    ]
    low, high = np.percentile(shares, [2.5, 97.5]) if shares else (float("nan"), float("nan"))
    correlation = spearmanr(key, edits).statistic if np.ptp(key) and np.ptp(edits) else 0.0
    return Ordering(float(correlation), _first_quarter(key, edits), (float(low), float(high)))


def _first_quarter(key: Sequence[float] | NDArray[np.float64], edits: NDArray[np.float64]) -> float:
    """Share of the edits in the first quarter by falling key; the last photo counts in part where a quarter is no whole
    number."""
    order = np.argsort(-np.asarray(key), kind="stable")
    total, quarter = edits.sum(), len(edits) / 4
    whole = int(quarter)
    first = edits[order[:whole]].sum() + (quarter - whole) * (edits[order[whole]] if whole < len(edits) else 0.0)
    return float(first / total) if total else 0.25
