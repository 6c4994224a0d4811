"""What a model says of annotated photos, photo by photo: the numbers that the gate compares two models by.

The photos are asked as the backend asks them: one query with every class about which the annotation decides, the
checkpoint's own thresholds, masks that may overlap. What always holds: the scores are plain numbers, and go through
JSON unchanged, so a job that was killed reads them back.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import DataError
from lasagna.masks.objects import Objects
from lasagna.masks.segmentation import ClassQuery, Segmentation
from training.data.records import UNKNOWN, LabelMap, Record
from training.evaluation.objects import Counts, count_matches
from training.evaluation.scoring import ClassScore, read_batches, score_photo


@dataclass(frozen=True)
class ImageScore:
    """One photo.

    Attributes:
        image_id: Its id.
        classes: A score for every class that was asked, in order.
        seconds: Of the model for it.
        objects: Of the classes whose objects are told apart: which were found.
    """

    image_id: str
    classes: tuple[ClassScore, ...]
    seconds: float = 0.0
    objects: Mapping[str, Counts] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ImageScore":
        objects = {name: Counts(**one) for name, one in values.get("objects", {}).items()}
        classes = tuple(ClassScore(**one) for one in values["classes"])
        return cls(values["image_id"], classes, values["seconds"], objects)


@dataclass(frozen=True)
class Latency:
    """Seconds of two models for the same work, again and again: (champion, candidate) of each pair, asked one right
    after the other."""

    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.pairs or not all(0 < seconds < math.inf for pair in self.pairs for seconds in pair):
            raise ValueError(f"latency is of pairs of positive seconds, not {self.pairs[:3]}")

    @property
    def champion(self) -> float:
        """Median seconds per photo."""
        return statistics.median(champion for champion, _ in self.pairs)

    @property
    def candidate(self) -> float:
        return statistics.median(candidate for _, candidate in self.pairs)

    def factor(self, draws: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """How many times the champion's seconds the candidate takes: the geometric mean over the pairs, of each draw
        (draws, pairs) of them (`lasagna.bootstrap`); None: of all, as one row."""
        weights = np.ones((1, len(self.pairs))) if draws is None else draws
        logs = np.log([candidate / champion for champion, candidate in self.pairs])
        return np.asarray(np.exp(weights @ logs / weights.sum(1)))

    def seconds(self, draws: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Seconds per photo of the candidate, in the same way."""
        weights = np.ones((1, len(self.pairs))) if draws is None else draws
        return np.asarray(np.exp(weights @ np.log([candidate for _, candidate in self.pairs]) / weights.sum(1)))

    def as_json(self) -> list[list[float]]:
        return [list(pair) for pair in self.pairs]

    @classmethod
    def from_json(cls, values: Any) -> "Latency":
        """Of `as_json`, or of the two medians that jobs wrote before there were pairs."""
        rows = values if isinstance(values[0], list) else [values]
        return cls(tuple((float(champion), float(candidate)) for champion, candidate in rows))


def score_images(
    model: ClassListAnswerer,
    records: Iterable[Record],
    on_image: Callable[[], None] = lambda: None,
    *,
    on_failure: Callable[[str, str], None] | None = None,
    batch_size: int = 4,
    threshold: float | None = None,
) -> list[ImageScore]:
    """Asks every photo, and scores the answers.

    Also classes are asked that the model was never taught: two models are compared by what they would say of them, and
    nothing that is unknown counts as an absence.

    Args:
        model: Answers `segment_batch`.
        records: Of class lists (`training.data.records`); read one batch at a time.
        on_image: Called after every photo, scored or failed.
        on_failure: As of `read_batches`.
        batch_size: Photos per call of the model.
        threshold: As of `segment_batch`; None: the checkpoint's own.

    Returns:
        The scores of the other photos, in order.
    """
    scores = []
    for batch in read_batches(records, batch_size, on_failure, on_image):
        images = [image for _, image, _ in batch]
        told = [record.objects() if record.objects else {} for record, _, _ in batch]
        asked = zip(batch, told, strict=True)
        queries = [
            [ClassQuery(name, objects=True) if name in each else name for name in record.classes]
            for (record, *_), each in asked
        ]
        began = time.perf_counter()
        answers = model.segment_batch(images, queries, threshold=threshold, guess_unknown=True)
        seconds = (time.perf_counter() - began) / len(batch)
        for (record, _, truth), answer, each in zip(batch, answers, told, strict=True):
            classes = score_photo(truth, answer).classes
            scores.append(ImageScore(record.image_id, classes, seconds, _objects(answer, truth, each)))
            on_image()
    return scores


def _objects(answer: Segmentation, truth: LabelMap, told: Mapping[str, Objects]) -> dict[str, Counts]:
    """Which objects of each class were found; what is annotated as a class and as no object of it is void."""
    unknown = (truth == UNKNOWN).any(0) if told else None
    found = {}
    for place, one in enumerate(answer.classes):
        if one.name in told:
            own = told[one.name].numbers
            void = (unknown | (truth == place).any(0)) & (own == 0)
            pieces = np.zeros_like(own) if one.objects is None else one.objects.numbers
            found[one.name] = count_matches(own, void, pieces)
    return found


def objects_in_words(champion: Iterable[ImageScore], candidate: Iterable[ImageScore]) -> str:
    """The panoptic quality of both models' objects on the same photos, for a report; "" where no class has any."""
    totals = []
    for side in (champion, candidate):
        total = Counts()
        for score in side:
            for counts in score.objects.values():
                total += counts
        totals.append(total)
    before, after = totals
    count = before.matched + before.missed
    if not count:
        return ""
    parts = [f"panoptic quality {before.pq or 0:.3f} before, {after.pq or 0:.3f} after, of {count} objects"]
    for what in ("matched", "wrong", "missed"):
        parts.append(f"{what} {getattr(before, what)} before, {getattr(after, what)} after")
    return "; ".join(parts)


_DRAWN = 8
_EVERYTHING = 1e-30
"""A threshold below every probability that a model gives."""


def measure_latency(
    champion: ClassListAnswerer,
    candidate: ClassListAnswerer,
    records: Iterable[Record],
    photos: int = 6,
    *,
    clock: Callable[[], float] | None = None,
) -> Latency:
    """Seconds of both models for the same work: a photo, its first 8 classes, each of them drawn.

    As they decide for themselves, one that finds two classes where the other finds none would look slow for being
    better: a mask of SAM's decoder can take as long as half an answer. They are asked one photo at a time, one right
    after the other, and each photo twice, in either order, so that other load on the machine meets both.

    Args:
        champion: The one model.
        candidate: The other.
        records: Photos with their classes.
        photos: So many of them: twice as many pairs.
        clock: Seconds; None: of the processor in this process, which other programs take nothing from, or of the
            wall where a GPU computes.

    Raises:
        DataError: No photo can be read.
    """
    clock = clock or _clock()

    def timed(model: ClassListAnswerer, image: Image.Image, asked: Sequence[str]) -> float:
        began = clock()
        model.segment_batch([image], [asked], threshold=_EVERYTHING, guess_unknown=True)
        return max(clock() - began, _SHORTEST)

    pairs = []
    for number, [(record, image, _)] in enumerate(islice(read_batches(records, 1), photos)):
        asked = record.classes[:_DRAWN]
        if not number:  # the first call of a model is not typical of the rest
            timed(champion, image, asked)
            timed(candidate, image, asked)
        first = timed(champion, image, asked)
        second, third = timed(candidate, image, asked), timed(candidate, image, asked)
        pairs += [(first, second), (timed(champion, image, asked), third)]
    if not pairs:
        raise DataError("no photo can be read to measure the time of the models on")
    return Latency(tuple(pairs))


_SHORTEST = 1e-6
"""Seconds; a clock may not have gone on."""


def _clock() -> Callable[[], float]:
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return time.perf_counter if on_gpu else time.process_time
