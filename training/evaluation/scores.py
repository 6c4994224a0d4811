"""What a model says of annotated photos, photo by photo: the numbers that the gate compares two models by.

The photos are asked as the backend asks them: one query with every class about which the annotation decides, the
checkpoint's own thresholds, masks that may overlap. What always holds: the scores are plain numbers, and go through
JSON unchanged, so a job that was killed reads them back.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from lasagna.errors import DataError
from training.data.records import Record
from training.evaluation.scoring import ClassListModel, ClassScore, read_batches, score_photo


@dataclass(frozen=True)
class ImageScore:
    """One photo: a score for every class that was asked, in order, and the seconds of the model for it."""

    image_id: str
    classes: tuple[ClassScore, ...]
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ImageScore":
        return cls(values["image_id"], tuple(ClassScore(**one) for one in values["classes"]), values["seconds"])


@dataclass(frozen=True)
class Latency:
    """Median seconds per photo of two models."""

    champion: float
    candidate: float


def score_images(
    model: ClassListModel,
    records: Iterable[Record],
    on_image: Callable[[], None] = lambda: None,
    *,
    on_failure: Callable[[str, str], None] | None = None,
    batch_size: int = 4,
    threshold: float | None = None,
) -> list[ImageScore]:
    """Asks every photo, and scores the answers.

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
        images, queries = [image for _, image, _ in batch], [record.classes for record, _, _ in batch]
        began = time.perf_counter()
        answers = model.segment_batch(images, queries, threshold=threshold)
        seconds = (time.perf_counter() - began) / len(batch)
        for (record, _, truth), answer in zip(batch, answers, strict=True):
            scores.append(ImageScore(record.image_id, score_photo(truth, answer).classes, seconds))
            on_image()
    return scores


_DRAWN = 8
_EVERYTHING = 1e-30
"""A threshold below every probability that a model gives."""


def measure_latency(
    champion: ClassListModel, candidate: ClassListModel, records: Iterable[Record], photos: int = 8
) -> Latency:
    """Seconds of both models for the same work: a photo, its first 8 classes, each of them drawn.

    As they decide for themselves, one that finds two classes where the other finds none would look slow for being
    better: a mask of SAM's decoder can take as long as half an answer. They are asked one photo at a time and in turn,
    so that other load on the machine meets both.

    Raises:
        DataError: No photo can be read.
    """
    seconds: dict[str, list[float]] = {"champion": [], "candidate": []}
    for number, [(record, image, _)] in enumerate(islice(read_batches(records, 1), photos)):
        for name, model in (("champion", champion), ("candidate", candidate)):
            asked = record.classes[:_DRAWN]
            if not number:  # the first call of a model is not typical of the rest
                model.segment_batch([image], [asked], threshold=_EVERYTHING)
            began = time.perf_counter()
            model.segment_batch([image], [asked], threshold=_EVERYTHING)
            seconds[name].append(time.perf_counter() - began)
    if not seconds["champion"]:
        raise DataError("no photo can be read to measure the time of the models on")
    return Latency(**{name: statistics.median(values) for name, values in seconds.items()})
