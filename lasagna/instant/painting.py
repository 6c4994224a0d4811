"""Scores on the features' grid to masks of the photo's size, with edges that follow the photo's.

Probabilities are brought up bilinearly, then a guided filter (He, Sun, Tang 2010) moves their edges to those of the
grey photo: in every window of radius `RADIUS`, the probability is a linear function of the grey value,

    a = (mean(I p) - mean(I) mean(p)) / (var(I) + EPSILON),   b = mean(p) - a mean(I),   q = mean(a) I + mean(b)

with box means, by `cv2.boxFilter`. Of a photo whose longer side is over `WORKING` pixels a and b are computed on a
smaller copy and brought up (He and Sun 2015). What always holds: masks exclude one another; a pixel where "none" is
largest has no class; memory is two maps of the photo's size, however many classes.
"""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lasagna.masks.segmentation import Mask

RADIUS = 4
EPSILON = 1e-3
WORKING = 1024

Map = NDArray[Any]
"""float32 (height, width)."""


def paint(
    scores: Tensor,
    grey: NDArray[np.uint8],
    input_size: tuple[int, int],
    inside: tuple[int, int],
) -> list[Mask]:
    """Masks of the competing classes.

    Args:
        scores: float32 (C + 1, h, w) log scores on the grid, padding included; the last is "none".
        grey: uint8 (H, W), the photo in grey.
        input_size: (height, width) of the encoder's input, which the grid covers.
        inside: (height, width) of the part of it that holds the photo.

    Returns:
        C masks, bool (H, W).
    """
    probabilities = scores.softmax(0).float().cpu().numpy()
    guide = _Guide(grey)
    best = np.full(grey.shape, -np.inf, np.float32)
    owner = np.full(grey.shape, -1, np.int16)
    for index in [len(probabilities) - 1, *range(len(probabilities) - 1)]:
        filtered = guide.filter(_to_working(probabilities[index], guide.size, input_size, inside))
        better = filtered > best
        best[better] = filtered[better]
        owner[better] = index
    return [owner == index for index in range(len(probabilities) - 1)]


class _Guide:
    """The grey photo, and its box statistics at the working size."""

    def __init__(self, grey: NDArray[np.uint8]) -> None:
        self._grey = grey.astype(np.float32) / 255
        height, width = self._grey.shape
        shrink = min(1.0, WORKING / max(height, width))
        self.size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        self._small = self._grey if shrink == 1 else _resize(self._grey, self.size, cv2.INTER_AREA)
        self._mean = _box(self._small)
        self._variance = (_box(self._small * self._small) - self._mean**2).clip(0)

    def filter(self, p: Map) -> Map:
        """(height, width) of the working size to the photo's."""
        mean = _box(p)
        a = (_box(self._small * p) - self._mean * mean) / (self._variance + EPSILON)
        b = _box(mean - a * self._mean)
        a = _box(a)
        if self.size != self._grey.shape:
            a, b = (_resize(each, self._grey.shape, cv2.INTER_LINEAR) for each in (a, b))
        filtered: Map = a * self._grey + b
        return filtered


def _box(values: Map) -> Map:
    side = 2 * RADIUS + 1
    mean: Map = cv2.boxFilter(values, cv2.CV_32F, (side, side), borderType=cv2.BORDER_REFLECT)
    return mean


def _resize(values: Map, size: tuple[int, ...], how: int) -> Map:
    resized: Map = cv2.resize(values, (size[1], size[0]), interpolation=how)
    return resized


def _to_working(p: Map, size: tuple[int, int], input_size: tuple[int, int], inside: tuple[int, int]) -> Map:
    """A map of the grid, (h, w), to the photo's working size."""
    if input_size != inside:
        p = _resize(p, input_size, cv2.INTER_LINEAR)[: inside[0], : inside[1]]
    return _resize(p, size, cv2.INTER_LINEAR)


def stability(scores: Tensor) -> Tensor:
    """SAM's stability score of each mask: the intersection over union at logits of +1 and of -1, on the grid.

    Args:
        scores: As of `paint`. The logit of a class is that of its probability against all others.

    Returns:
        float32 (C,) in [0, 1]; 1 of an empty mask.
    """
    p = scores[:-1].exp() if len(scores) == 1 else scores.softmax(0)[:-1]
    logits = torch.logit(p, eps=1e-6)
    inner, outer = ((logits > threshold).flatten(1).sum(1).float() for threshold in (1, -1))
    return torch.where(outer > 0, inner / outer.clamp(min=1), torch.ones_like(inner)).cpu()
