"""What people drew in Label Studio, as masks. The other direction is `lasagna.formats.label_studio`.

What always holds: a mask is bool (height, width) of the upright photo; a region that is damaged raises DataError that
names it; a rectangle or an ellipse is a mask of its area, unless a traced region (brush, bitmask, polygon) of its class
touches it: then it is the same object in coarser form, as in projects where the model draws every class with each
control.

Source of the format: Label Studio 1.23, measured against a real server.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.formats.regions import Region
from lasagna.masks.bitmask import bitmask_to_mask
from lasagna.masks.conversions import brush_rle_to_mask, polygons_to_mask
from lasagna.masks.ellipses import Ellipse, ellipse_to_mask
from lasagna.masks.segmentation import Mask

Key = TypeVar("Key", bound=Hashable)

_COARSE = ("rectangle", "ellipse")


def choose_annotation(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The annotation of a task that counts: the ground truth, else the newest. Raises DataError where none is
    finished."""
    finished = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not finished:
        raise DataError("skipped by the annotator" if annotations else "not annotated")
    return max(finished, key=lambda a: (bool(a.get("ground_truth")), changed_at(a), a.get("id") or 0))


def changed_at(annotation: Mapping[str, Any]) -> datetime:
    """When an annotation was changed last, else made; `datetime.min` where it does not say."""
    try:
        time = datetime.fromisoformat(annotation.get("updated_at") or annotation.get("created_at") or "")
    except (TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def region_to_mask(region: Region, size: tuple[int, int]) -> Mask:
    """The mask of one region on an image of `size` (height, width).

    Raises:
        DataError: It is damaged, was drawn on an image of another size, or is no area. Names the region.
    """
    if region.size not in (None, size):
        assert region.size is not None
        raise DataError(
            f"{region.name} was drawn on {region.size[1]} x {region.size[0]} pixels, but the photo has "
            f"{size[1]} x {size[0]}"
        )
    draw = _DRAW.get(region.kind)
    if draw is None:
        raise DataError(f"{region.name} is {_NO_AREA.get(region.kind, 'of a kind that is not known here')}")
    try:
        return draw(region.value, size)
    except (DataError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DataError) else f"not what Label Studio writes ({error!r})"
        raise DataError(f"{region.name}: {what}") from error


def regions_to_masks(regions: Iterable[tuple[Key, Region]], size: tuple[int, int]) -> list[tuple[Key, Mask]]:
    """The masks of an annotation's regions by key (what a region is drawn for: a class), several for one key where
    there are several; rectangles and ellipses last, and without those that a traced region of their key touches. Raises
    DataError as `region_to_mask`."""
    masks: list[tuple[Key, Mask]] = []
    traced: dict[Key, Mask] = {}
    for key, region in sorted(regions, key=lambda pair: pair[1].kind in _COARSE):
        mask = region_to_mask(region, size)
        if region.kind not in _COARSE:
            traced[key] = traced.get(key, False) | mask
        elif key in traced and (traced[key] & mask).any():
            continue
        masks.append((key, mask))
    return masks


def _draw_brush(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    return brush_rle_to_mask(value["rle"], size)


def _draw_bitmask(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    return bitmask_to_mask(value["imageDataURL"], size)


def _draw_polygon(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    return polygons_to_mask([_pixels(value["points"], size)], size)


def _draw_rectangle(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    """x and y are the corner that is top left before the rectangle is turned about it, clockwise, by `rotation`."""
    corner, extent = _pixels([[value["x"], value["y"]], [value["width"], value["height"]]], size)
    angle = math.radians(value.get("rotation") or 0)
    along = np.array((math.cos(angle), math.sin(angle))) * extent[0]
    down = np.array((-math.sin(angle), math.cos(angle))) * extent[1]
    return polygons_to_mask([np.stack([corner, corner + along, corner + along + down, corner + down])], size)


def _draw_ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    points = [[value["x"], value["y"]], [value["radiusX"], value["radiusY"]]]
    (x, y), (radius_x, radius_y) = _pixels(points, size).tolist()
    return ellipse_to_mask(Ellipse(x, y, radius_x, radius_y, float(value.get("rotation") or 0)), size)


def _pixels(percent: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Points (n, 2) in percent of the width and height as pixels."""
    return np.asarray(percent, np.float64).reshape(-1, 2) * (size[1] / 100, size[0] / 100)


_DRAW = {
    "brush": _draw_brush,
    "bitmask": _draw_bitmask,
    "polygon": _draw_polygon,
    "rectangle": _draw_rectangle,
    "ellipse": _draw_ellipse,
}
_NO_AREA = {"keypoint": "a point and has no area", "line": "a line and has no area"}
