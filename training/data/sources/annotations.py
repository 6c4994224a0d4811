"""What readers of JSON annotations share: the files themselves, the size of a photo, run lengths as masks.

What always holds: a mask is bool (height, width) of the photo as a viewer shows it (after EXIF orientation), and a mask
that is damaged raises DataError before a pixel of it is used.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.errors import DataError
from lasagna.masks.conversions import polygons_to_mask

Mask = NDArray[np.bool_]

_EXIF_ORIENTATION = 0x0112


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8 or, as some of ReasonSeg, Windows' Western code page. Raises DataError."""
    try:
        content = path.read_bytes()
        try:
            return json.loads(content.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return json.loads(content.decode("cp1252"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); copy or download it again") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a photo after EXIF orientation, read from the file's header. Raises DataError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: the photo cannot be read ({error}); copy or download it again") from error
    return (width, height) if turned else (height, width)


def runs_to_mask(rle: dict[str, Any], size: tuple[int, int]) -> Mask:
    """The mask of COCO's run lengths, `{"size": [height, width], "counts": ...}`, runs of 0 and 1 in turn down columns.

    `counts` is a list of numbers (`iscrowd` in COCO) or COCO's compressed text (refCLEF). It is decoded here since
    pycocotools leaves pixels that the runs do not cover uninitialised.

    Raises:
        DataError: The runs are of another size than the photo, or damaged.
    """
    height, width = size
    try:
        stated, counts = tuple(rle["size"]), rle["counts"]
        runs = np.array(counts if isinstance(counts, list) else _decompress(counts), np.int64)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise DataError(f"run lengths are not in COCO's format ({error!r})") from error
    if stated != size:
        raise DataError(f"run lengths are of a photo of {stated[::-1]}, the photo is {width} x {height}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise DataError(f"run lengths cover {runs.sum()} pixels of {height * width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _decompress(text: str | bytes) -> list[int]:
    """COCO's compressed counts: 5 bits per character from 48 on, the 6th says that more follow; from the fourth number
    on, each is the difference to the one two before."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii") if isinstance(text, str) else text:
        code -= 48
        if not 0 <= code < 64:
            raise ValueError("character outside COCO's alphabet")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the text ends inside a number")
    return counts


def segmentation_to_mask(segmentation: Any, size: tuple[int, int]) -> Mask:
    """The mask of an annotation's `segmentation` in COCO's format: a list of polygons, of run lengths, or one of these.

    Raises:
        DataError: It is none of these, or damaged.
    """
    parts: Sequence[Any] = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list) or not all(isinstance(part, dict | list) for part in parts):
        raise DataError(f"a segmentation is a list of polygons or of run lengths, not {str(segmentation)[:80]}")
    mask = polygons_to_mask([part for part in parts if isinstance(part, list)], size)
    for part in parts:
        if isinstance(part, dict):
            mask |= runs_to_mask(part, size)
    return mask
