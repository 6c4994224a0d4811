"""Masks as PNG: semantic, whose pixels are class indices, and instances, whose pixels are numbers of objects.

Semantic. Index 0 is "no class", index i + 1 class i of the query; `classes.json` beside the PNGs has the names and
colours. Up to 255 classes the PNG has 8 bits and a palette, so that it can be looked at; with more it has 16 bits of
grey.

Masks of one image may overlap, a pixel of the PNG has one class: masks are painted from the largest to the smallest
(ties: in query order), so that a small object on a large ground stays visible.

Instances. 16 bits of grey: 0 is "none", and each object of a class has a number from 1 on; a table says which class it
is of. As COCO's panoptic format (https://cocodataset.org/#format-data), but with the number in one channel. Of a class
whose objects are not told apart each connected part has a number: objects of it that touch are one part.
"""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from lasagna.masks.palette import palette
from lasagna.masks.segmentation import ClassAnswer, Segmentation

UNLABELLED = 0
_MOST_WITH_PALETTE = 255
_MOST_INSTANCES = 65535


def segmentation_to_indices(segmentation: Segmentation) -> NDArray[np.uint16]:
    """(height, width): 0 where no class is, i + 1 for class i of the segmentation."""
    indices = np.full(segmentation.size, UNLABELLED, dtype=np.uint16)
    present = [(i, answer) for i, answer in enumerate(segmentation.classes, start=1) if answer.mask is not None]
    for i, answer in sorted(present, key=lambda pair: -pair[1].area):
        indices[answer.mask] = i
    return indices


def segmentation_to_instances(
    segmentation: Segmentation, *, covered: bool = False
) -> tuple[NDArray[np.uint16], list[dict[str, Any]]]:
    """(height, width): 0 where there is nothing, else the number of an object or part; and a row for each.

    They are painted from the largest to the smallest, as classes are, and numbered in this order; beyond 65535 they
    are left out. A row: `id`, `class`, `probability` of the class, `score` of an object, and of what is seen of it
    `area` in pixels and `bbox` (x, y, width, height). One that is wholly covered has no row, or, with `covered`, one
    with area 0.
    """
    found: list[_Piece] = []
    for i, answer in enumerate(segmentation.classes):
        found += _pieces(i, answer)
    numbers = np.zeros(segmentation.size, np.uint16)
    found.sort(key=lambda one: one[:3])
    for number, (_, _, part, (left, top, width, height), labels) in enumerate(found[:_MOST_INSTANCES], start=1):
        box = slice(top, top + height), slice(left, left + width)
        numbers[box][labels[box] == part] = number
    table = []
    for (down, across), number, area in _seen(numbers):
        table.append(
            {
                **_row(number, segmentation, found[number - 1]),
                "area": area,
                "bbox": [across.start, down.start, across.stop - across.start, down.stop - down.start],
            }
        )
    if covered:
        seen = {row["id"] for row in table}
        for number, piece in enumerate(found[:_MOST_INSTANCES], start=1):
            left, top, _, _ = piece[3]
            row = _row(number, segmentation, piece)
            table += [] if number in seen else [{**row, "area": 0, "bbox": [left, top, 0, 0]}]
        table.sort(key=itemgetter("id"))
    return numbers, table


_Piece = tuple[int, int, int, list[int], NDArray[np.integer]]
"""Minus its pixels, its class's index, its number in a picture of the class, its box (x, y, w, h), that picture."""


def _pieces(i: int, answer: ClassAnswer) -> Iterator[_Piece]:
    if answer.mask is None or not answer.mask.any():
        return
    if answer.objects is not None:
        numbers = answer.objects.numbers
        for (down, across), number, area in _seen(numbers):
            box = [across.start, down.start, across.stop - across.start, down.stop - down.start]
            yield -area, i, number, box, numbers
        return
    _, labels, rows, _ = cv2.connectedComponentsWithStats(answer.mask.view(np.uint8), connectivity=8)
    for part, row in enumerate(np.asarray(rows).tolist()):
        if part:
            yield -row[cv2.CC_STAT_AREA], i, part, row[:4], np.asarray(labels)


def _row(number: int, segmentation: Segmentation, piece: _Piece) -> dict[str, Any]:
    answer = segmentation.classes[piece[1]]
    row = {"id": number, "class": answer.name, "probability": round(float(answer.probability), 6)}
    return row if answer.objects is None else {**row, "score": round(answer.objects.scores[piece[2] - 1], 6)}


def _seen(numbers: NDArray[np.uint16]) -> Iterator[tuple[tuple[slice, slice], int, int]]:
    """For each number in the picture: rows and columns that it lies in, the number, its pixels."""
    areas = np.bincount(numbers.reshape(-1))
    for number, box in enumerate(find_objects(numbers.astype(np.int32)), start=1):
        if box is not None:
            yield box, number, int(areas[number])


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
