"""Masks as COCO's run lengths: a few bytes for each border in a column of pixels, instead of one for each pixel.

What always holds: the masks are those that pycocotools draws; what would make it allocate without bound, or crash, is
refused before it is called; a union of many is made as a tree, so that its cost grows with the runs and not with their
square.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.segmentation import Mask

Runs = dict[str, Any]
"""COCO's compressed run lengths, as pycocotools passes them around: `size` (height, width) and `counts` (bytes)."""

LONGEST_OUTLINE = 4_000_000
"""Pixels along the outline of one polygon: pycocotools walks it in fifths of a pixel, and keeps every step."""

_AT_ONCE = 16


def polygon_to_runs(polygon: NDArray[np.float64], size: tuple[int, int]) -> Runs:
    """The runs of a polygon (even-odd rule).

    Args:
        polygon: Corners (n, 2), x and y in pixels; fewer than three have no area.
        size: (height, width).

    Raises:
        DataError: Its outline is longer than `LONGEST_OUTLINE`.
    """
    from pycocotools.mask import frPyObjects

    if len(polygon) < 3:
        return mask_to_runs(np.zeros(size, np.bool_))
    steps = np.abs(np.diff(polygon, axis=0, append=polygon[:1])).max(axis=1)
    outline = float(steps.sum()) + len(polygon) / 5  # each corner takes a step, however near the next one is
    if outline > LONGEST_OUTLINE:
        raise DataError(
            f"a polygon of {len(polygon)} corners has an outline of {outline:.0f} pixels, the limit is "
            f"{LONGEST_OUTLINE}; draw it simpler, or as a brush region"
        )
    [runs] = frPyObjects([polygon.reshape(-1).tolist()], *size)
    return dict(runs)


def mask_to_runs(mask: Mask) -> Runs:
    """The runs of a mask."""
    from pycocotools.mask import encode

    return dict(encode(np.asfortranarray(mask, dtype=np.uint8)))


def runs_to_mask(runs: Runs) -> Mask:
    """The mask, bool (height, width)."""
    from pycocotools.mask import decode

    return np.ascontiguousarray(decode(runs), np.bool_)


def union(parts: Sequence[Runs]) -> Runs:
    """The union of at least one."""
    from pycocotools.mask import merge

    left = list(parts)
    while len(left) > 1:
        left = [dict(merge(left[at : at + _AT_ONCE])) for at in range(0, len(left), _AT_ONCE)]
    return left[0]


def touch(one: Runs, other: Runs) -> bool:
    """Whether two masks have a pixel in common."""
    from pycocotools.mask import area, merge

    return bool(area(merge([one, other], intersect=True)) > 0)


def is_same(one: Runs, other: Runs) -> bool:
    """Whether two masks are mostly the same: their intersection is more than half of their union."""
    from pycocotools.mask import iou

    return bool(iou([one], [other], [0])[0, 0] > 0.5)


def pixels(runs: Runs) -> int:
    """How many pixels are in the mask."""
    from pycocotools.mask import area

    return int(area(runs))


def is_empty(runs: Runs) -> bool:
    """Whether no pixel is in the mask."""
    return pixels(runs) == 0
