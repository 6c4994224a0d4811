"""What people drew in Label Studio, as masks. The other direction is `lasagna.formats.label_studio`.

What always holds: a mask is bool (height, width) of the upright photo; a region that is damaged raises DataError that
names it; a rectangle or an ellipse is a mask of its area, unless a traced region (brush, bitmask, polygon) of its class
touches it: then it is the same object in coarser form, as in projects where the model draws every class with each
control.

Source of the format: Label Studio 1.23, measured against a real server.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.formats.regions import AREAS, Region
from lasagna.masks.bitmask import bitmask_to_mask
from lasagna.masks.conversions import as_polygon, brush_rle_to_mask
from lasagna.masks.ellipses import Ellipse, ellipse_to_mask
from lasagna.masks.objects import Objects
from lasagna.masks.runs import (
    Runs,
    is_empty,
    is_same,
    mask_to_runs,
    pixels,
    polygon_to_runs,
    runs_to_mask,
    touch,
    union,
)
from lasagna.masks.segmentation import Mask

Key = TypeVar("Key", bound=Hashable)

_COARSE = ("rectangle", "ellipse")
MOST_REGIONS = 20_000
"""Regions of one annotation."""


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
    with _named(region, size):
        draw = _DRAW.get(region.kind)
        return draw(region.value, size) if draw else runs_to_mask(_runs(region, size))


def has_area(region: Region, size: tuple[int, int]) -> bool:
    """Whether a region covers a pixel. Raises DataError as `region_to_mask`."""
    if region.kind in _CORNERS:
        with _named(region, size):
            return not is_empty(_runs(region, size))
    return bool(region_to_mask(region, size).any())


def regions_to_masks(regions: Iterable[tuple[Key, Region]], size: tuple[int, int]) -> Iterator[tuple[Key, Mask]]:
    """The mask of each key of an annotation's regions (what a region is drawn for: a class), one after the other, so
    that one is in memory at a time: the union of its regions, without the rectangles and ellipses that a traced region
    of the key touches.

    Raises DataError as `region_to_mask`, or where there are more than `MOST_REGIONS`.
    """
    groups: dict[Key, list[Region]] = {}
    for key, region in regions:
        groups.setdefault(key, []).append(region)
    count = sum(map(len, groups.values()))
    if count > MOST_REGIONS:
        raise DataError(f"the annotation has {count} regions, the limit is {MOST_REGIONS}")
    for key, group in groups.items():
        traced = _traced(group, size)
        coarse = []
        for region in group:
            if region.kind in _COARSE:
                with _named(region, size):
                    runs = _runs(region, size)
                if traced is None or not touch(traced, runs):
                    coarse.append(runs)
        yield key, runs_to_mask(union([*([] if traced is None else [traced]), *coarse]))


def regions_to_objects(regions: Iterable[tuple[Key, Region]], size: tuple[int, int]) -> Iterator[tuple[Key, Objects]]:
    """The objects of each key of an annotation's regions: one region is one object, with a score of 1.

    Together they are the mask that `regions_to_masks` gives. A rectangle or ellipse that a traced region of the key
    touches is no object, nor is a region of another control that is mostly the same as one that came before: both are
    the same object, drawn once more. Where objects overlap, the smaller one lies on top; one that is wholly covered is
    left out.

    Raises DataError as `regions_to_masks`.
    """
    groups: dict[Key, list[Region]] = {}
    for key, region in regions:
        groups.setdefault(key, []).append(region)
    if sum(map(len, groups.values())) > MOST_REGIONS:
        raise DataError(f"the annotation has {sum(map(len, groups.values()))} regions, the limit is {MOST_REGIONS}")
    for key, group in groups.items():
        yield key, _objects(group, size)


def _objects(group: Sequence[Region], size: tuple[int, int]) -> Objects:
    drawn: list[tuple[str, Runs]] = []
    for wanted in (False, True):  # what is traced comes first
        traced = list(drawn)
        for region in group:
            if (region.kind in _COARSE) != wanted:
                continue
            with _named(region, size):
                runs = _runs(region, size)
            if wanted and any(touch(other, runs) for _, other in traced):
                continue
            for place, (by, other) in enumerate(drawn):
                if by != region.control and is_same(other, runs):
                    drawn[place] = (by, union([other, runs]))
                    break
            else:
                drawn.append((region.control, runs))
    numbers = np.zeros(size, np.int32)
    for place in sorted(range(len(drawn)), key=lambda i: -pixels(drawn[i][1])):
        numbers[runs_to_mask(drawn[place][1])] = place + 1
    return Objects.of_numbers(numbers, [1.0] * len(drawn))


def _traced(group: Sequence[Region], size: tuple[int, int]) -> Runs | None:
    """The union of the regions of one key that are traced (brush, bitmask, polygon); None where there are none."""
    parts: list[Runs] = []
    painted: Mask | None = None
    for region in group:
        if region.kind in _COARSE:
            continue
        if region.kind in _CORNERS:
            with _named(region, size):
                parts.append(_runs(region, size))
            continue
        mask = region_to_mask(region, size)
        painted = mask if painted is None else painted | mask
    if painted is not None:
        parts.append(mask_to_runs(painted))
    return union(parts) if parts else None


@contextmanager
def _named(region: Region, size: tuple[int, int]) -> Iterator[None]:
    """Raises DataError that names a region that cannot be drawn on an image of this size, or while it is drawn."""
    if region.size not in (None, size):
        assert region.size is not None
        raise DataError(
            f"{region.name} was drawn on {region.size[1]} x {region.size[0]} pixels, but the photo has "
            f"{size[1]} x {size[0]}"
        )
    if region.kind not in AREAS:
        raise DataError(f"{region.name} is {_NO_AREA.get(region.kind, 'of a kind that is not known here')}")
    try:
        yield
    except (DataError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DataError) else f"not what Label Studio writes ({error!r})"
        raise DataError(f"{region.name}: {what}") from error


def _runs(region: Region, size: tuple[int, int]) -> Runs:
    corners = _CORNERS.get(region.kind)
    if corners is None:
        return mask_to_runs(_DRAW[region.kind](region.value, size))
    return polygon_to_runs(as_polygon(corners(region.value, size), size), size)


def _draw_brush(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    return brush_rle_to_mask(value["rle"], size)


def _draw_bitmask(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    return bitmask_to_mask(value["imageDataURL"], size)


def _polygon_corners(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    return _pixels(value["points"], size)


def _rectangle_corners(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """x and y are the corner that is top left before the rectangle is turned about it, clockwise, by `rotation`."""
    corner, extent = _pixels([[value["x"], value["y"]], [value["width"], value["height"]]], size)
    angle = math.radians(value.get("rotation") or 0)
    along = np.array((math.cos(angle), math.sin(angle))) * extent[0]
    down = np.array((-math.sin(angle), math.cos(angle))) * extent[1]
    return np.stack([corner, corner + along, corner + along + down, corner + down])


def _draw_ellipse(value: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    points = [[value["x"], value["y"]], [value["radiusX"], value["radiusY"]]]
    (x, y), (radius_x, radius_y) = _pixels(points, size).tolist()
    return ellipse_to_mask(Ellipse(x, y, radius_x, radius_y, float(value.get("rotation") or 0)), size)


def _pixels(percent: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Points (n, 2) in percent of the width and height as pixels. Raises ValueError for what is no finite number."""
    points = np.asarray(percent, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite")
    return points * (size[1] / 100, size[0] / 100)


_CORNERS = {"polygon": _polygon_corners, "rectangle": _rectangle_corners}
_DRAW = {"brush": _draw_brush, "bitmask": _draw_bitmask, "ellipse": _draw_ellipse}
_NO_AREA = {"keypoint": "a point and has no area", "line": "a line and has no area"}
