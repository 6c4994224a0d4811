"""What people drew in Label Studio, as masks. The other direction is `lasagna.formats.label_studio`.

What always holds: a mask is bool (height, width) of the upright photo; a region that is damaged raises DataError that
names it; a rectangle is a mask of its area, unless a brush or polygon region of its class touches it: then it is the
same object in coarser form, as in projects where the model draws every class with each control.

Source of the format: Label Studio 1.23, measured against a real server.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.conversions import as_polygon, brush_rle_to_mask
from lasagna.masks.runs import Runs, mask_to_runs, polygon_to_runs, runs_to_mask, touch, union
from lasagna.masks.segmentation import Mask

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Region(Generic[Key]):
    """One label of one drawn region.

    Attributes:
        name: Says in messages which it is.
        kind: Of its control: "brush", "polygon" or "rectangle" can be drawn (`DRAWN`).
        key: What it is drawn for: a class.
        value: Label Studio's.
    """

    name: str
    kind: str
    key: Key
    value: dict[str, Any]


def choose_annotation(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The annotation of a task that counts: the ground truth, else the newest. Raises DataError where none is
    finished."""
    finished = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not finished:
        raise DataError("skipped by the annotator" if annotations else "not annotated")
    return max(finished, key=lambda a: (bool(a.get("ground_truth")), _changed_at(a), a.get("id") or 0))


def _changed_at(annotation: dict[str, Any]) -> datetime:
    try:
        time = datetime.fromisoformat(annotation.get("updated_at") or annotation.get("created_at") or "")
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def compact_value(value: dict[str, Any]) -> dict[str, Any]:
    """The value with its run lengths as bytes: as a list of ints they take eight times the memory."""
    try:
        return {**value, "rle": bytes(value["rle"])} if isinstance(value.get("rle"), list) else value
    except (TypeError, ValueError):
        return value  # whoever reads the mask is told that it is damaged


MOST_REGIONS = 20_000
"""Regions of one annotation."""


def region_to_mask(region: Region[Any], size: tuple[int, int]) -> Mask:
    """The mask of one region. Raises DataError that names it where it is damaged."""
    with _named(region):
        return _brush_mask(region, size) if region.kind == "brush" else runs_to_mask(_runs(region, size))


def regions_to_masks(regions: Iterable[Region[Key]], size: tuple[int, int]) -> Iterator[tuple[Key, Mask]]:
    """The mask of each key of an annotation's regions, one after the other, so that one is in memory at a time: the
    union of its regions, without the rectangles that a traced region of the key touches.

    Raises DataError as `region_to_mask`, or where there are more than `MOST_REGIONS`.
    """
    groups: dict[Key, list[Region[Key]]] = {}
    for region in regions:
        groups.setdefault(region.key, []).append(region)
    count = sum(map(len, groups.values()))
    if count > MOST_REGIONS:
        raise DataError(f"the annotation has {count} regions, the limit is {MOST_REGIONS}")
    for key, group in groups.items():
        traced = _traced(group, size)
        rectangles = []
        for region in group:
            if region.kind == "rectangle":
                with _named(region):
                    runs = _runs(region, size)
                if traced is None or not touch(traced, runs):
                    rectangles.append(runs)
        yield key, runs_to_mask(union([*([] if traced is None else [traced]), *rectangles]))


def _traced(group: Sequence[Region[Any]], size: tuple[int, int]) -> Runs | None:
    """The union of the brush and polygon regions of one key; None where there are none."""
    parts: list[Runs] = []
    painted: Mask | None = None
    for region in group:
        if region.kind == "rectangle":
            continue
        with _named(region):
            if region.kind != "brush":
                parts.append(_runs(region, size))
            elif painted is None:
                painted = _brush_mask(region, size)
            else:
                painted |= _brush_mask(region, size)
    if painted is not None:
        parts.append(mask_to_runs(painted))
    return union(parts) if parts else None


@contextmanager
def _named(region: Region[Any]) -> Iterator[None]:
    """An error of drawing a region as DataError that names it."""
    try:
        yield
    except (DataError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DataError) else f"not what Label Studio writes ({error!r})"
        raise DataError(f"{region.name}: {what}") from error


def _brush_mask(region: Region[Any], size: tuple[int, int]) -> Mask:
    return brush_rle_to_mask(region.value["rle"], size)


def _runs(region: Region[Any], size: tuple[int, int]) -> Runs:
    """Of a polygon or a rectangle."""
    corners = _CORNERS[region.kind](region.value, size)
    return polygon_to_runs(as_polygon(corners, size), size)


def _polygon_corners(value: dict[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    return _pixels(value["points"], size)


def _rectangle_corners(value: dict[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """x and y are the corner that is top left before the rectangle is turned about it, clockwise, by `rotation`."""
    corner, extent = _pixels([[value["x"], value["y"]], [value["width"], value["height"]]], size)
    angle = math.radians(value.get("rotation") or 0)
    along = np.array((math.cos(angle), math.sin(angle))) * extent[0]
    down = np.array((-math.sin(angle), math.cos(angle))) * extent[1]
    return np.stack([corner, corner + along, corner + along + down, corner + down])


def _pixels(percent: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Points (n, 2) in percent of the width and height as pixels."""
    return np.asarray(percent, np.float64).reshape(-1, 2) * (size[1] / 100, size[0] / 100)


_CORNERS = {"polygon": _polygon_corners, "rectangle": _rectangle_corners}

DRAWN = frozenset({"brush", *_CORNERS})
"""The kinds of controls whose regions are masks."""
