"""What one answer is worth on one annotated photo: read, ask, score. Every figure of class lists is added up from that.

What always holds: void pixels count nowhere; every class has a mask of its own in the annotation, so that overlapping
masks are whole; a class without a region is a certain absence.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lasagna.errors import DataError, LasagnaError
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import Segmentation
from training.data.records import UNKNOWN, LabelMap, Record

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


AskedPhoto = tuple[Record, "Image.Image", LabelMap]


def read_photo(record: Record) -> "tuple[Image.Image, LabelMap]":
    """A record's photo and its label map. Raises ImageError or DataError, also where their sizes differ."""
    if record.image_path is None:
        raise DataError(f"{record.source} {record.image_id} has no photo")
    image, labels = load_image(record.image_path), record.read()
    if labels.shape[1:] != (image.height, image.width):
        raise DataError(
            f"the annotation of {record.image_path} is {labels.shape[2]} x {labels.shape[1]}, the photo {image.width} "
            f"x {image.height}; a mask has the size of its image"
        )
    return image, labels


def _say_failure(image_id: str, reason: str) -> None:
    logger.warning("photo %s is not scored: %s", image_id, reason)


def read_batches(
    records: Iterable[Record],
    size: int,
    on_failure: Callable[[str, str], None] | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[list[AskedPhoto]]:
    """The photos of class lists, read one batch at a time.

    Args:
        size: Photos of a batch; the last may have fewer.
        on_failure: Called with the id and the reason of a photo that is left out: it or its annotation cannot be read,
            or their sizes differ, or it has no class list. None: a warning in the log.
        on_image: Called after every photo that is left out.
    """
    batch: list[AskedPhoto] = []
    for record in records:
        try:
            if not record.classes:
                raise DataError(f"{record.source} {record.image_id} has no class list")
            batch.append((record, *read_photo(record)))
        except LasagnaError as error:
            (on_failure or _say_failure)(record.image_id, str(error))
            on_image()
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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
        probability: What it said, in [0, 1]; NaN where the class is unknown.
        is_unknown: The model was not asked for it (`lasagna.masks.segmentation.ClassAnswer`): it is scored nowhere.
    """

    name: str
    intersection: int
    union: int
    truth: int
    present: bool
    said: bool
    probability: float
    is_unknown: bool = False


@dataclass(frozen=True)
class PhotoScore:
    """One photo.

    Attributes:
        classes: A score for every class that was asked, in order.
        pixels: Of the photo, without void and without the pixels of unknown classes.
        right: Of these, the pixels where a class was drawn that they have, or none where they have none.
    """

    classes: tuple[ClassScore, ...]
    pixels: int
    right: int


def score_photo(truth: LabelMap, answer: Segmentation, own: int | None = None) -> PhotoScore:
    """Scores an answer.

    Args:
        truth: The annotation; indices into the answer's classes.
        own: How many of the answer's first classes the annotation decides about; masks of those behind (distractors)
            are no class of a pixel. None: all.

    Raises:
        ValueError: Annotation and answer differ in size.
    """
    if truth.shape[1:] != answer.size:
        raise ValueError(f"expected an annotation (layers, {answer.size[0]}, {answer.size[1]}), found {truth.shape}")
    known, annotated = ~(truth == UNKNOWN).any(0), set(np.unique(truth).tolist())
    nothing = np.zeros_like(known)
    right, covered, unasked = nothing.copy(), nothing.copy(), nothing.copy()
    scores = []
    for index, found in enumerate(answer.classes):
        wanted = (truth == index).any(0) & known if index in annotated else nothing
        drawn = found.mask & known if found.mask is not None else nothing
        both = wanted & drawn
        if own is None or index < own:
            right |= both
            covered |= drawn
            if found.is_unknown:
                unasked |= wanted
        count, pixels = int(both.sum()), int(wanted.sum())
        union = pixels + int(drawn.sum()) - count
        scores.append(
            ClassScore(
                found.name,
                count,
                union,
                pixels,
                index in annotated,
                found.is_present,
                float(found.probability),
                found.is_unknown,
            )
        )
    right |= known & ~covered & (truth < 0).all(0)
    counted = known & (~unasked | right)
    return PhotoScore(tuple(scores), int(counted.sum()), int(right.sum()))
