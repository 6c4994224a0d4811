"""What a model says of annotated photos, photo by photo: the numbers that the gate compares two models by.

The photos are asked as the backend asks them: one query with every class about which the annotation decides, the
checkpoint's own thresholds, masks that may overlap. What always holds: void pixels count nowhere; every class has a
mask of its own in the annotation, so that overlapping masks are whole; a class without a region is a certain absence.
The scores are plain numbers, and go through JSON unchanged: a job that was killed reads them back.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from lasagna.errors import DataError, LasagnaError
from lasagna.masks.segmentation import Segmentation
from training.data.records import UNKNOWN, LabelMap, Record
from training.evaluation.evaluate import ClassListModel, read_photo

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassScore:
    """One class in one photo.

    Attributes:
        name: What the model was asked.
        intersection: Pixels of both masks, void left out, as the two that follow.
        union: Pixels of either mask.
        truth: Pixels of the annotation.
        present: The annotation has the class (also where all of it is void).
        said: The model said so.
        probability: What it said, in [0, 1].
    """

    name: str
    intersection: int
    union: int
    truth: int
    present: bool
    said: bool
    probability: float


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


def _say_failure(image_id: str, reason: str) -> None:
    logger.warning("photo %s is not scored: %s", image_id, reason)


def score_images(
    model: ClassListModel,
    records: Iterable[Record],
    on_image: Callable[[], None] = lambda: None,
    *,
    on_failure: Callable[[str, str], None] = _say_failure,
    batch_size: int = 4,
    threshold: float | None = None,
) -> list[ImageScore]:
    """Asks every photo, and scores the answers.

    Args:
        model: Answers `segment_batch`.
        records: Of class lists (`training.data.records`); read one batch at a time.
        on_image: Called after every photo, scored or failed.
        on_failure: Called with the id and the reason of a photo that cannot be scored: it or its annotation cannot be
            read, or their sizes differ. Default: a warning in the log.
        batch_size: Photos per call of the model.
        threshold: As of `segment_batch`; None: the checkpoint's own.

    Returns:
        The scores of the other photos, in order.
    """
    scores = []
    for batch in _batches(records, batch_size, on_failure, on_image):
        images, queries = [image for _, image, _ in batch], [record.classes for record, _, _ in batch]
        began = time.perf_counter()
        answers = model.segment_batch(images, queries, threshold=threshold)
        seconds = (time.perf_counter() - began) / len(batch)
        for (record, _, truth), answer in zip(batch, answers, strict=True):
            scores.append(ImageScore(record.image_id, score_answer(truth, answer), seconds))
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
    for number, [(record, image, _)] in enumerate(islice(_batches(records, 1), photos)):
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


def score_answer(truth: LabelMap, answer: Segmentation) -> tuple[ClassScore, ...]:
    """The scores of one photo. `truth` holds indices into the answer's classes, in its layers."""
    known = ~(truth == UNKNOWN).any(0)
    scores = []
    for index, found in enumerate(answer.classes):
        annotated = (truth == index).any(0)
        wanted = annotated & known
        drawn = found.mask & known if found.mask is not None else np.zeros_like(known)
        scores.append(
            ClassScore(
                found.name,
                int((wanted & drawn).sum()),
                int((wanted | drawn).sum()),
                int(wanted.sum()),
                bool(annotated.any()),
                found.is_present,
                float(found.probability),
            )
        )
    return tuple(scores)


_Asked = tuple[Record, "Image.Image", LabelMap]


def _batches(
    records: Iterable[Record],
    size: int,
    on_failure: Callable[[str, str], None] = _say_failure,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[Sequence[_Asked]]:
    batch: list[_Asked] = []
    for record in records:
        try:
            if not record.classes:
                raise DataError(f"{record.source} {record.image_id} has no class list")
            batch.append((record, *read_photo(record)))
        except LasagnaError as error:
            on_failure(record.image_id, str(error))
            on_image()
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
