"""Semantic masks: one PNG per image whose pixels are class indices.

Index 0 is "no class", index i + 1 class i of the query; `classes.json` beside the PNGs has the names and colours. Up to
255 classes the PNG has 8 bits and a palette, so that it can be looked at; with more it has 16 bits of grey.

Masks of one image may overlap, a pixel of the PNG has one class: masks are painted from the largest to the smallest
(ties: in query order), so that a small object on a large ground stays visible.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lasagna.palette import palette
from lasagna.segmentation import Segmentation

UNLABELLED = 0
_MOST_WITH_PALETTE = 255


def segmentation_to_indices(segmentation: Segmentation) -> NDArray[np.uint16]:
    """(height, width): 0 where no class is, i + 1 for class i of the segmentation."""
    indices = np.full(segmentation.size, UNLABELLED, dtype=np.uint16)
    present = [(i, answer) for i, answer in enumerate(segmentation.classes, start=1) if answer.mask is not None]
    for i, answer in sorted(present, key=lambda pair: -pair[1].area):
        indices[answer.mask] = i
    return indices


def indices_to_png(indices: NDArray[np.uint16], class_count: int) -> Image.Image:
    """Mode P with the palette of the classes, or mode I;16 if there are more than 255; save it as PNG."""
    if class_count > _MOST_WITH_PALETTE:
        return Image.fromarray(indices)
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, *(channel for colour in palette(class_count) for channel in colour)])
    return image


def class_table(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `classes.json`: index, name and colour, with row 0 for "no class"."""
    rows: list[dict[str, Any]] = [{"index": UNLABELLED, "name": None, "colour": [0, 0, 0]}]
    for i, (name, colour) in enumerate(zip(class_names, palette(len(class_names)), strict=True), start=1):
        rows.append({"index": i, "name": name, "colour": list(colour)})
    return rows
