"""What people drew in Label Studio, as masks. The other direction is `lasagna.formats.label_studio`.

What always holds: a mask is bool (height, width) of the upright photo; a region that is damaged raises DataError that
names it; a rectangle is a mask of its area, unless a brush or polygon region of its class touches it: then it is the
same object in coarser form, as in projects where the model draws every class with each control.

Source of the format: Label Studio 1.23, measured against a real server.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lasagna.errors import DataError
from lasagna.masks.conversions import brush_rle_to_mask, polygons_to_mask
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


def region_to_mask(region: Region[Any], size: tuple[int, int]) -> Mask:
    """The mask of one region. Raises DataError that names it where it is damaged."""
    try:
        return _DRAW[region.kind](region.value, size)
    except (DataError, KeyError, TypeError, ValueError) as error:
        what = error if isinstance(error, DataError) else f"not what Label Studio writes ({error!r})"
        raise DataError(f"{region.name}: {what}") from error


def regions_to_masks(regions: Iterable[Region[Key]], size: tuple[int, int]) -> list[tuple[Key, Mask]]:
    """The masks of an annotation's regions by key, several for one key where there are several; rectangles last, and
    without those that a traced region of their key touches. Raises DataError as `region_to_mask`."""
    masks: list[tuple[Key, Mask]] = []
    traced: dict[Key, Mask] = {}
    for region in sorted(regions, key=lambda one: one.kind == "rectangle"):
        mask = region_to_mask(region, size)
        if region.kind != "rectangle":
            traced[region.key] = traced.get(region.key, False) | mask
        elif region.key in traced and (traced[region.key] & mask).any():
            continue
        masks.append((region.key, mask))
    return masks


def _draw_brush(value: dict[str, Any], size: tuple[int, int]) -> Mask:
    return brush_rle_to_mask(value["rle"], size)


def _draw_polygon(value: dict[str, Any], size: tuple[int, int]) -> Mask:
    return polygons_to_mask([_pixels(value["points"], size)], size)


def _draw_rectangle(value: dict[str, Any], size: tuple[int, int]) -> Mask:
    """x and y are the corner that is top left before the rectangle is turned about it, clockwise, by `rotation`."""
    corner, extent = _pixels([[value["x"], value["y"]], [value["width"], value["height"]]], size)
    angle = math.radians(value.get("rotation") or 0)
    along = np.array((math.cos(angle), math.sin(angle))) * extent[0]
    down = np.array((-math.sin(angle), math.cos(angle))) * extent[1]
    return polygons_to_mask([np.stack([corner, corner + along, corner + along + down, corner + down])], size)


def _pixels(percent: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Points (n, 2) in percent of the width and height as pixels."""
    return np.asarray(percent, np.float64).reshape(-1, 2) * (size[1] / 100, size[0] / 100)


_DRAW = {"brush": _draw_brush, "polygon": _draw_polygon, "rectangle": _draw_rectangle}

DRAWN = frozenset(_DRAW)
"""The kinds of controls whose regions are masks."""
