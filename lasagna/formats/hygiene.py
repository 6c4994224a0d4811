"""What is left out of an answer before people see it: specks, slivers, doubles, more than one can look at.

Pure functions. A *part* is an 8-connected piece of one class's mask: what becomes one polygon or box. What always
holds: a class that is present stays present, also where none of its parts is kept (it then has a mask without a pixel,
and no region); masks only ever lose pixels; the same answer and limits give the same; what is left out is counted. With
the defaults of `Hygiene` nothing is.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lasagna.formats.regions import Region, read_regions
from lasagna.labels.parts import ImageConfig
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation
from lasagna.settings import Settings


@dataclass(frozen=True)
class Hygiene:
    """Limits; 0 is none.

    Attributes:
        min_area: Pixels below which a part is left out.
        min_width: Pixels: a part that is nowhere as wide as this (a sliver along a border) is left out.
        duplicate_iou: In (0, 1]: of two parts of different classes that overlap by at least this IoU (one object
            named twice, or one just inside the other), the one of the less probable class is left out.
        max_regions: Parts kept per image: the largest.
        max_region_bytes: JSON bytes of a brush region of Label Studio. A larger one is left out where the labelling
            configuration has a polygon for its class, which is drawn as well.
    """

    min_area: int = 0
    min_width: float = 0.0
    duplicate_iou: float = 0.0
    max_regions: int = 0
    max_region_bytes: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "Hygiene":
        """The limits of the settings `min_area`, `min_width`, ..."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def changes_masks(self) -> bool:
        return bool(self.min_area or self.min_width or self.duplicate_iou or self.max_regions)


@dataclass(frozen=True)
class Counts:
    """How much was left out, by reason.

    Attributes:
        small, slivers, duplicates, beyond_limit: Parts, by the first reason in this order that applies.
        to_polygon: Brush regions over the limit on bytes that are drawn as a polygon alone.
        too_large: Regions over it that stay, for there is no polygon for their class.
    """

    small: int = 0
    slivers: int = 0
    duplicates: int = 0
    beyond_limit: int = 0
    to_polygon: int = 0
    too_large: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: number + getattr(other, name) for name, number in asdict(self).items()})


@dataclass(frozen=True)
class _Part:
    """One part: index of its class, the class's label image and its number there, box (left, top, right, bottom)."""

    index: int
    labels: NDArray[np.integer]
    number: int
    box: tuple[int, int, int, int]
    area: int
    probability: float

    def pixels(self, box: tuple[int, int, int, int] | None = None) -> Mask:
        """The part inside a box; default: its own."""
        left, top, right, bottom = box or self.box
        return self.labels[top:bottom, left:right] == self.number


def clean_segmentation(segmentation: Segmentation, hygiene: Hygiene) -> tuple[Segmentation, Counts]:
    """The answer without what the limits leave out, and how much that was."""
    if not hygiene.changes_masks:
        return segmentation, Counts()
    parts = [part for i in range(len(segmentation.classes)) for part in _parts(segmentation, i)]
    large = [part for part in parts if part.area >= hygiene.min_area]
    wide = [part for part in large if not hygiene.min_width or _width(part) >= hygiene.min_width]
    single = list(_without_duplicates(wide, hygiene.duplicate_iou)) if hygiene.duplicate_iou else wide
    kept = sorted(single, key=lambda part: (-part.area, part.index, part.number))
    kept = kept[: hygiene.max_regions] if hygiene.max_regions else kept
    counts = Counts(
        small=len(parts) - len(large),
        slivers=len(large) - len(wide),
        duplicates=len(wide) - len(single),
        beyond_limit=len(single) - len(kept),
    )
    if len(kept) == len(parts):
        return segmentation, counts
    numbers: dict[int, list[int]] = {}
    for part in kept:
        numbers.setdefault(part.index, []).append(part.number)
    labels = {part.index: part.labels for part in parts}
    classes = tuple(
        _masked(answer, np.isin(labels[i], numbers.get(i, []))) if i in labels else answer
        for i, answer in enumerate(segmentation.classes)
    )
    return Segmentation(segmentation.size, classes), counts


def _masked(answer: ClassAnswer, mask: Mask) -> ClassAnswer:
    """An answer with less of its mask, and of its objects."""
    return replace(answer, mask=mask, objects=None if answer.objects is None else answer.objects.within(mask))


def limit_region_bytes(
    prediction: dict[str, Any], config: ImageConfig, max_bytes: int
) -> tuple[dict[str, Any], Counts]:
    """A prediction of Label Studio without brush regions that freeze the editor, where a polygon shows the same.

    Args:
        prediction: Of `segmentation_to_label_studio`.
        config: That it was made for.
        max_bytes: See `Hygiene.max_region_bytes`.
    """
    if not max_bytes:
        return prediction, Counts()
    [regions] = read_regions(prediction["result"], [config]).of_image
    outlined = {label.value for region in regions if region.kind == "polygon" for label in region.labels}
    dropped, to_polygon, too_large = set(), 0, 0
    for region in regions:
        if _bytes(region) <= max_bytes:
            continue
        if region.kind == "brush" and outlined.issuperset(label.value for label in region.labels):
            dropped.add(region.id)
            to_polygon += 1
        else:
            too_large += 1
    kept = [result for result in prediction["result"] if result.get("id") not in dropped]
    return {**prediction, "result": kept}, Counts(to_polygon=to_polygon, too_large=too_large)


def _bytes(region: Region) -> int:
    """Of the JSON of a region's shape."""
    drawn = region.value.get({"brush": "rle", "bitmask": "imageDataURL"}.get(region.kind, "points"), ())
    return _json_bytes(list(drawn) if isinstance(drawn, bytes) else drawn)


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _parts(segmentation: Segmentation, index: int) -> Iterable[_Part]:
    answer = segmentation.classes[index]
    if answer.mask is None or not answer.mask.any():
        return
    _, labels, rows, _ = cv2.connectedComponentsWithStats(answer.mask.view(np.uint8), connectivity=8)
    for number, (left, top, width, height, area) in enumerate(np.asarray(rows)[1:].tolist(), start=1):
        box = (left, top, left + width, top + height)
        yield _Part(index, np.asarray(labels), number, box, area, float(answer.probability))


def _width(part: _Part) -> float:
    """The diameter in pixels of the largest disc inside the part: 1 for a line of single pixels."""
    padded = np.pad(part.pixels().view(np.uint8), 1)
    return 2 * float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max()) - 1


def _without_duplicates(parts: list[_Part], least_iou: float) -> Iterable[_Part]:
    kept: list[_Part] = []
    for part in sorted(parts, key=lambda one: (-one.probability, one.index, one.number)):
        if not any(other.index != part.index and _iou(part, other, least_iou) >= least_iou for other in kept):
            kept.append(part)
            yield part


def _iou(one: _Part, other: _Part, least: float) -> float:
    """Intersection over union; 0 where the areas or the boxes alone say that it is below `least`."""
    small, large = sorted((one.area, other.area))
    box = (
        max(one.box[0], other.box[0]), max(one.box[1], other.box[1]),
        min(one.box[2], other.box[2]), min(one.box[3], other.box[3]),
    )  # fmt: skip
    inside = max(0, box[2] - box[0]) * max(0, box[3] - box[1])
    if small < least * large or inside < least * large:
        return 0.0
    common = int(np.count_nonzero(one.pixels(box) & other.pixels(box)))
    return common / (small + large - common)
