"""Masks and what other tools call a mask: Label Studio's brush RLE, polygons, boxes, COCO's RLE. Pure functions.

A mask is a bool array (height, width). Geometry is in pixels of the image, measured at pixel *corners*: the pixel in
column x and row y covers [x, x + 1] x [y, y + 1], so a mask of the whole image is the polygon from (0, 0) to (width,
height).
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from lasagna.errors import DataError
from lasagna.masks.brush_rle import encode_brush_rle
from lasagna.masks.runs import polygon_to_runs, runs_to_mask, union
from lasagna.masks.segmentation import Mask

Polygon = NDArray[np.float64]
"""(n, 2), n >= 3: corners x, y of a closed ring, the first not repeated at the end."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1: left, top, right and bottom edge, so the width is x1 - x0."""


# --- Label Studio's brush format --------------------------------------------------------------------------------------


def mask_to_brush_rle(mask: Mask) -> list[int]:
    """Label Studio's brush RLE (bytes 0 to 255) of a mask.

    The mask must have the size of the image as the browser shows it, after EXIF orientation: the editor takes the size
    from the image, and draws stripes if it differs. All four channels carry 0 or 255; 0 and 1 would be invisible. The
    format: `lasagna.masks.brush_rle`.
    """
    return encode_brush_rle(mask, repeat=4)


def brush_rle_to_mask(rle: Sequence[int], size: tuple[int, int], threshold: int = 128) -> Mask:
    """The mask of a brush RLE, made by us or painted in the editor.

    Args:
        rle: Bytes 0 to 255.
        size: (height, width) of the image.
        threshold: Opacity (alpha, 1 to 255) from which a pixel belongs to the mask. Strokes painted in the editor are
            anti-aliased; 128 puts the border where at least half of the pixel is covered.

    Raises:
        DataError: The RLE is not of an image of that size (checked before anything is allocated), or is damaged.
    """
    from label_studio_brush_rle_rs import decode_rle

    height, width = size
    try:
        header = bytes(rle[:4])
        count = int.from_bytes(header, "big")
        if len(header) < 4 or count != 4 * height * width:
            raise DataError(
                f"a brush mask has {count} values where an image of {width} x {height} needs {4 * height * width}; "
                "it was made for another image or for an image that is not upright"
            )
        values = decode_rle(rle, False)
    except (ValueError, OverflowError, TypeError) as error:
        raise DataError(
            f"a brush mask cannot be decoded ({error}); expected a list of bytes as the editor writes"
        ) from error
    # Alpha is the highest byte of a pixel that is read as one little-endian number; that compares four times faster.
    return values.view("<u4").reshape(height, width) >= np.uint32(threshold << 24)


# --- COCO's run lengths -----------------------------------------------------------------------------------------------


def mask_to_coco_rle(mask: Mask) -> dict:
    """COCO's compressed RLE, `{"size": [height, width], "counts": text}`, as pycocotools reads it and JSON holds it."""
    from pycocotools.mask import encode

    rle = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def coco_rle_to_mask(rle: dict) -> Mask:
    """The inverse of `mask_to_coco_rle`."""
    from pycocotools.mask import decode

    return np.ascontiguousarray(decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}), dtype=np.bool_)


# --- Boxes ------------------------------------------------------------------------------------------------------------


def mask_to_box(mask: Mask) -> Box | None:
    """The smallest box around the mask; None for an empty mask."""
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_to_boxes(mask: Mask, min_area: float = 0.0) -> list[Box]:
    """The smallest box around each connected part, largest part first.

    Parts of fewer than `min_area` pixels are dropped, except the largest: a mask that is not empty has a box.
    """
    boxes: list[Box] = []
    for left, top, width, height, area in _part_statistics(mask):
        if area >= min_area or not boxes:
            boxes.append((int(left), int(top), int(left + width), int(top + height)))
    return boxes


def mask_to_parts(mask: Mask) -> Iterator[Mask]:
    """Each 8-connected part of the mask as a mask of the same size, largest part first, then in reading order."""
    _, labels, rows, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    order = np.lexsort((rows[1:, 0], rows[1:, 1], -rows[1:, 4])) + 1  # the first is the background
    for number in order.tolist():
        left, top, width, height = rows[number, :4].tolist()
        box = slice(top, top + height), slice(left, left + width)
        part = np.zeros(mask.shape, np.bool_)
        part[box] = labels[box] == number
        yield part


def drop_specks(mask: Mask, min_area: float) -> Mask:
    """The mask without connected parts, and without holes, of fewer than `min_area` pixels; the largest part stays."""
    if min_area <= 1 or not mask.any():
        return mask
    tidy = mask.copy()
    # Borders of 8-connected parts are 4-connected holes.
    for value, connectivity in ((True, 8), (False, 4)):
        wanted = (tidy == value).view(np.uint8)
        count, parts, rows, _ = cv2.connectedComponentsWithStats(wanted, connectivity=connectivity)
        small = rows[:, cv2.CC_STAT_AREA] < min_area
        small[0] = False
        if value:
            small[1 + rows[1:count, cv2.CC_STAT_AREA].argmax()] = False
        tidy[small[parts]] = not value
    return tidy


def _part_statistics(mask: Mask) -> NDArray[np.int32]:
    """One row (left, top, width, height, pixels) per 8-connected part, largest first, then in reading order."""
    _, _, rows, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    parts = rows[1:]  # the first is the background
    return parts[np.lexsort((parts[:, 0], parts[:, 1], -parts[:, 4]))]


# --- Polygons ---------------------------------------------------------------------------------------------------------


def mask_to_polygons(mask: Mask, tolerance: float = 1.0, min_area: float = 0.0) -> list[Polygon]:
    """One polygon per 8-connected part of the mask, largest part first.

    Holes. Neither Label Studio nor COCO has polygons with holes, so a hole is kept by a *bridge*: the ring runs from
    the outer border to the hole, around it, and back along the same line. The bridge has no area, and the hole stays
    open under the even-odd and under the non-zero rule.

    Arguments as for `mask_to_rings`.
    """
    return [_bridge(outer, holes) for outer, *holes in mask_to_rings(mask, tolerance, min_area)]


def mask_to_polygon(mask: Mask, tolerance: float = 1.0, min_area: float = 0.0) -> Polygon | None:
    """One ring around all of the mask: parts are joined as holes are, by a bridge that has no area, each at its nearest
    corner, the largest first. None for an empty mask.

    That is how one object in several parts is one polygon, where a format has one ring for each object (Label Studio,
    YOLO; Ultralytics' converter from COCO joins them so, too).

    Arguments as for `mask_to_rings`.
    """
    rings = mask_to_polygons(mask, tolerance, min_area)
    return functools.reduce(lambda ring, part: _bridge(ring, [part]), rings) if rings else None


def mask_to_rings(mask: Mask, tolerance: float = 1.0, min_area: float = 0.0) -> list[list[Polygon]]:
    """The rings of each 8-connected part of the mask, largest part first: its outer border, then each hole's.

    Holes run the other way round than outer borders. Holes of fewer than `min_area` pixels are filled.

    Args:
        mask: bool (height, width).
        tolerance: Largest distance in pixels between the border of the part and the polygon (Douglas-Peucker). 0
            follows the pixels' edges exactly: the polygon then contains the centres of the part's pixels and of no
            other.
        min_area: Parts of fewer pixels (holes not counted) are dropped, except the largest: a mask that is not empty
            has a polygon.
    """
    box = mask_to_box(mask)
    if box is None:
        return []
    x0, y0, x1, y1 = box
    # cv2 runs along the centres of border pixels. In a mask of twice the size every pixel is four, each of which
    # touches one corner of the pixel: running along their centres is running along the corners. See `_corners`.
    doubled = mask[y0:y1, x0:x1].view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners(contour) for contour in contours]
    areas = [cv2.contourArea(ring) for ring in rings]

    parts = []
    for i, (_, _, first_hole, parent) in enumerate(hierarchy[0]):
        if parent != -1:
            continue
        holes = []
        hole = first_hole
        while hole != -1:
            holes.append(hole)
            hole = hierarchy[0][hole][0]
        parts.append((areas[i] - sum(areas[hole] for hole in holes), i, holes))
    parts.sort(key=lambda part: (-part[0], rings[part[1]][0, 1], rings[part[1]][0, 0]))

    found: list[list[Polygon]] = []
    for area, outer, holes in parts:
        if area >= min_area or not found:
            kept = [outer, *(hole for hole in holes if areas[hole] >= min_area)]
            found.append([_simplify(rings[i], tolerance) + np.array((x0, y0)) for i in kept])
    return found


def _corners(contour: NDArray[Any]) -> NDArray[Any]:
    """Corners (n, 2) of the pixels that a contour of the doubled mask runs along.

    Column 2x touches the left edge x of its pixel, column 2x + 1 the right edge x + 1; rows likewise. This holds for
    outer borders and for holes (which cv2 traces along the mask's pixels around them), and a diagonal step, which
    happens only where two pixels meet, leads from a corner to itself.
    """
    corners = (contour[:, 0] + 1) // 2
    return corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]


def _simplify(ring: NDArray[Any], tolerance: float) -> Polygon:
    """Douglas-Peucker; where that would leave a part without area, with a smaller tolerance."""
    while tolerance > 0.1:
        simplified = cv2.approxPolyDP(ring, tolerance, closed=True)[:, 0]
        if len(simplified) >= 3 and cv2.contourArea(simplified) > 0:
            return simplified.astype(np.float64)
        tolerance /= 2
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns].astype(np.float64)


def _bridge(outer: Polygon, holes: list[Polygon]) -> Polygon:
    """One ring around a part and its holes (which run the other way round), with a shortest line to each hole."""
    if not holes:
        return outer
    corners = cKDTree(outer)
    detours: dict[int, list[Polygon]] = {}
    for hole in holes:
        distances, nearest = corners.query(hole)
        start = int(distances.argmin())
        at = int(nearest[start])
        around = np.roll(hole, -start, axis=0)
        detours.setdefault(at, []).append(np.concatenate([around, around[:1], outer[at : at + 1]]))
    pieces, done = [], 0
    for at in sorted(detours):
        pieces += [outer[done : at + 1], *detours[at]]
        done = at + 1
    return np.concatenate([*pieces, outer[done:]])


def as_polygon(points: ArrayLike, size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners (n, 2), x and y in pixels. Raises DataError where they are no numbers or lie far outside the photo."""
    try:
        polygon = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise DataError(f"a polygon is a list of x, y, not {str(points)[:80]}") from error
    if not (np.abs(polygon) <= 10 * max(size)).all():  # also where they are NaN
        raise DataError(f"a polygon has corners far outside the photo of {size[1]} x {size[0]}: {str(points)[:80]}")
    return polygon


def polygons_to_mask(polygons: Iterable[ArrayLike], size: tuple[int, int]) -> Mask:
    """The union of polygons as COCO draws them: a pixel belongs to the mask when its centre is inside (even-odd rule).

    Args:
        polygons: Each (n, 2) or flat x, y, x, y, ..., in pixels at pixel corners. Those of fewer than three corners,
            which some data sets contain, have no area.
        size: (height, width).

    Raises:
        DataError: As `as_polygon`, or an outline is too long (`lasagna.masks.runs`).
    """
    rings = [ring for ring in (as_polygon(polygon, size) for polygon in polygons) if len(ring) >= 3]
    if not rings:
        return np.zeros(size, np.bool_)
    return runs_to_mask(union([polygon_to_runs(ring, size) for ring in rings]))
