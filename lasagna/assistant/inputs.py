"""What users give to `Lasagna`: images, class lists, thresholds and prompts, checked before anything is computed.

What always holds: an image that is given to the Python interface is read as the command line reads it, or refused; what
is of a wrong type raises an error that says what was expected.
"""

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.errors import ImageError, QueryError
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery, class_queries

ImageLike = Image.Image | NDArray[np.uint8] | str | os.PathLike[str] | bytes | BinaryIO
"""A Pillow image, an array (H, W, 3), a path, or a file's content."""


def as_array(image: ImageLike) -> NDArray[np.uint8]:
    """An image as uint8 (H, W, 3): arrays as they are, anything else as `load_image` reads it. Raises ImageError."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape:
            return image
        raise ImageError(
            f"an array is an image where it is uint8 (height, width, 3), not {image.dtype} {image.shape}; give the "
            "file's path instead, which is read whatever samples it has, or scale the array to 8 bits and 3 channels"
        )
    if isinstance(image, str | os.PathLike | bytes | Image.Image) or hasattr(image, "read"):
        return np.asarray(load_image(image))
    shape = f" {tuple(image.shape)}" if hasattr(image, "shape") else ""
    raise ImageError(
        f"an image is a path, the content of a file, a Pillow image or a uint8 array (height, width, 3), not "
        f"{type(image).__name__}{shape}; several images go to segment_batch, as a list"
    )


def check_batch(
    images: Any, class_lists: Any, threshold: Any, chunk_size: Any, exclusive: Any = False
) -> list[list[ClassQuery]]:
    """The queries of each image of a batch. Raises QueryError for whatever of it cannot be asked."""
    if isinstance(images, str | bytes | Image.Image | np.ndarray) or not isinstance(images, Sequence):
        raise QueryError(f"the images of a batch are a list, not {type(images).__name__}; one image goes to segment")
    if isinstance(class_lists, str | bytes) or not isinstance(class_lists, Sequence):
        raise QueryError(f"the class lists of a batch are a list of lists, not {type(class_lists).__name__}")
    if len(class_lists) > 0 and all(isinstance(classes, str | ClassQuery) for classes in class_lists):
        raise QueryError(
            f"a batch has a class list for each image, and {str(class_lists)[:60]} is one list; write "
            f"[{str(class_lists)[:60]}] * {len(images)} to ask all {len(images)} images the same"
        )
    if len(images) != len(class_lists):
        raise QueryError(f"{len(images)} images need as many class lists, not {len(class_lists)}")
    if threshold is not None and (not _is_number(threshold) or not 0 < threshold < 1):
        raise QueryError(f"the threshold is a probability between 0 and 1, not {threshold!r}")
    if chunk_size is not None and (not isinstance(chunk_size, numbers.Integral) or int(chunk_size) < 1):
        raise QueryError(f"chunk_size is a number of classes, 1 or more, not {chunk_size!r}")
    if not isinstance(exclusive, bool | np.bool_):
        raise QueryError(f"exclusive is True or False, not {exclusive!r}")
    return [class_queries(classes) for classes in class_lists]


def check_question(question: Any) -> None:
    """Raises QueryError for what is no question in words."""
    if not isinstance(question, str):
        raise QueryError(f"a question is a text, not {type(question).__name__}")


def check_prompt(points: Sequence[Any], box: Any, size: tuple[int, int]) -> None:
    """Raises QueryError for a prompt without a point or box, or with one that is not in the image.

    Args:
        points, box: As for `Lasagna.segment_prompt`.
        size: (height, width) of the image.
    """
    height, width = size
    if not isinstance(points, Sequence | np.ndarray):
        raise QueryError(f"points are a list of (x, y, is foreground), not {points!r}")
    if not len(points) and box is None:
        raise QueryError("a prompt needs a point or a box")
    for point in points:
        if (
            not isinstance(point, Sequence | np.ndarray)
            or len(point) != 3
            or not all(_is_number(value) for value in point[:2])
        ):
            raise QueryError(f"a point is (x, y, is foreground), in pixels, not {point!r}")
        if not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise QueryError(f"the point {point[0]}, {point[1]} is outside of the image of {width} x {height} pixels")
    if box is None:
        return
    if not isinstance(box, Sequence | np.ndarray) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise QueryError(f"a box is (x0, y0, x1, y1), in pixels, not {box!r}")
    (x0, x1), (y0, y1) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise QueryError(f"the box {tuple(box)} is outside of the image of {width} x {height} pixels")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(float(value))
