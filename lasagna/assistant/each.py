"""A batch, then its images one by one: no image takes the others of its batch down.

Always holds: there is one outcome for each image, in order, whatever the model raises for some of them.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from lasagna.errors import in_words
from lasagna.masks.segmentation import ClassQuery, Segmentation

logger = logging.getLogger(__name__)


def segment_each(
    segment_batch: Callable[..., Sequence[Segmentation]],
    images: Sequence[Image.Image],
    class_lists: Sequence[Sequence[ClassQuery]],
    *,
    fatal: tuple[type[BaseException], ...] = (),
    **options: Any,
) -> list[Segmentation | Exception]:
    """The answer of each image, or the error that the model raises for it alone.

    Args:
        segment_batch: That of a `Lasagna`, or of what serves a project.
        class_lists: A class list per image.
        fatal: Errors that are raised on, since they are not about an image.
        options: Its parameters.

    Returns:
        One outcome per image, in order. Where the batch fails (memory, one image), each image is tried by itself.
    """
    try:
        return list(segment_batch(images, class_lists, **options))
    except fatal:
        raise
    except Exception as error:  # whatever a model raises (out of memory, a query too long) is about this batch
        if len(images) == 1:
            return [error]
        logger.warning("a batch of %d images failed (%s); they are tried one by one", len(images), in_words(error))
    return [
        outcome
        for image, asked in zip(images, class_lists, strict=True)
        for outcome in segment_each(segment_batch, [image], [asked], fatal=fatal, **options)
    ]
