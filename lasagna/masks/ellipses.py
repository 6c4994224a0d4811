"""Masks and ellipses. Geometry is in pixels of the image at pixel corners, as in `lasagna.masks.conversions`."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lasagna.masks.segmentation import Mask


class Ellipse(NamedTuple):
    """Centre, half axes, and the angle in degrees by which the first axis is turned clockwise from the x axis."""

    x: float
    y: float
    radius_x: float
    radius_y: float
    rotation: float


def mask_to_ellipses(mask: Mask, min_area: float = 0.0) -> list[Ellipse]:
    """An ellipse per 8-connected part, largest part first: of the same centre, area ratio of axes and direction.

    The half axes are twice the square roots of the eigenvalues of the pixels' covariance: for a part that is an
    ellipse these are its own. A pixel counts as a square, so that a part of one pixel has an area.

    Args:
        mask: bool (height, width).
        min_area: Pixels below which a part is left out; the largest stays.
    """
    count, labels, rows, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = np.asarray(rows)[1:, cv2.CC_STAT_AREA] if count > 1 else np.zeros(0, np.int32)
    order = sorted(range(len(areas)), key=lambda i: -int(areas[i]))
    found = []
    for place, i in enumerate(order):
        if place and areas[i] < min_area:
            continue
        left, top, width, height, _ = rows[i + 1].tolist()
        ys, xs = np.nonzero(labels[top : top + height, left : left + width] == i + 1)
        found.append(_around(xs + left, ys + top))
    return found


def mask_to_ellipse(mask: Mask) -> Ellipse | None:
    """The one ellipse of all of a mask, as `mask_to_ellipses` has one for each part; None of an empty mask."""
    ys, xs = np.nonzero(mask)
    return _around(xs, ys) if len(xs) else None


def _around(xs: NDArray[np.integer], ys: NDArray[np.integer]) -> Ellipse:
    """The ellipse of pixels: their columns and rows."""
    covariance = np.cov(np.stack([xs, ys]), bias=True) if len(xs) > 1 else np.zeros((2, 2))
    values, axes = np.linalg.eigh(covariance + np.eye(2) / 12)  # 1/12: the variance of a unit square
    radius_y, radius_x = 2 * np.sqrt(values)
    angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1])) % 180
    return Ellipse(float(xs.mean()) + 0.5, float(ys.mean()) + 0.5, float(radius_x), float(radius_y), float(angle))


def ellipse_to_mask(ellipse: Ellipse, size: tuple[int, int]) -> Mask:
    """The pixels whose centres lie in an ellipse: bool of size (height, width). No pixel where an axis is 0."""
    mask = np.zeros(size, np.bool_)
    reach = max(ellipse.radius_x, ellipse.radius_y)  # whatever the rotation, the ellipse is within
    if not (ellipse.radius_x > 0 and ellipse.radius_y > 0 and np.isfinite([ellipse.x, ellipse.y, reach]).all()):
        return mask
    left, right = (int(np.clip(side, 0, size[1])) for side in (ellipse.x - reach, ellipse.x + reach + 1))
    top, bottom = (int(np.clip(side, 0, size[0])) for side in (ellipse.y - reach, ellipse.y + reach + 1))
    turn = np.radians(ellipse.rotation)
    across = np.arange(left, right) + 0.5 - ellipse.x
    for row in range(top, bottom):
        down = row + 0.5 - ellipse.y
        along = (across * np.cos(turn) + down * np.sin(turn)) / ellipse.radius_x
        beside = (down * np.cos(turn) - across * np.sin(turn)) / ellipse.radius_y
        mask[row, left:right] = along**2 + beside**2 <= 1
    return mask
