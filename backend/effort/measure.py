"""Edit effort: how much of the model's prediction did a person have to change?

Pure functions of Label Studio's JSON and of masks; no model, no torch. What always holds:

- a task is compared by two annotations of the same photo: the prediction that its annotator was shown, and what was
  submitted. Which prediction that was: `shown_prediction`;
- each image of a task is compared by itself: a region belongs to the image that its `to_name` and page say;
- pixels and boundaries are compared by class, all regions of a class together, as training reads them
  (`lasagna.formats.annotations`): they do not depend on how an object is cut into regions;
- an object that is cut in two, or two that are merged, change no pixel of their class: they are counted as such
  (`backend.effort.objects`), besides the regions that are changed, added and deleted by it;
- regions are compared by their id, which Label Studio keeps when a prediction becomes an annotation. A region is
  accepted where its label and pixels are the same, whatever its `origin` says;
- a distance between boundaries is undefined (None) where one of them is not there;
- a class that the model was not asked for, since it was never taught it, is no miss of the model: where a person drew
  it, it is named (`TaskEffort.unknown`) and in no figure.

The definitions in words, for people who read the report: docs/effort.md.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.effort.objects import cuts_and_merges
from lasagna.errors import DataError
from lasagna.formats.annotations import choose_annotation, region_to_mask, regions_to_masks
from lasagna.formats.regions import Region, read_regions
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.parts import ImageConfig
from lasagna.masks.conversions import mask_to_box
from lasagna.masks.segmentation import Mask

NO_LABEL = "(no label)"
"""What regions without a label are called."""


@dataclass(frozen=True)
class ClassEffort:
    """What changed in one class of one photo.

    Attributes:
        before: Pixels of the prediction.
        after: Pixels of what was submitted.
        changed: Pixels in one of them only.
        boundary: Mean distance of the two boundaries in pixels (`boundary_distance`); None where the class is not in
            both.
    """

    before: int
    after: int
    changed: int
    boundary: float | None


@dataclass(frozen=True)
class Effort:
    """What changed in one photo, by class; a class that is neither in the prediction nor submitted is not listed."""

    classes: Mapping[str, ClassEffort]

    @property
    def changed(self) -> int:
        """Changed pixels of all classes together: a pixel that goes from one class to another counts twice, once for
        each, as it has to be erased and to be drawn."""
        return sum(one.changed for one in self.classes.values())

    @property
    def boundary(self) -> float | None:
        """The mean over the classes that are in both."""
        return _mean([one.boundary for one in self.classes.values() if one.boundary is not None])


@dataclass
class RegionCounts:
    """Regions of the prediction that were accepted, changed and deleted, and regions that were added; and of classes
    whose objects are told apart how often one was cut in two, and two were merged into one."""

    accepted: int = 0
    changed: int = 0
    added: int = 0
    deleted: int = 0
    cut: int = 0
    merged: int = 0

    def __iadd__(self, other: "RegionCounts") -> "RegionCounts":
        self.accepted += other.accepted
        self.changed += other.changed
        self.added += other.added
        self.deleted += other.deleted
        self.cut += other.cut
        self.merged += other.merged
        return self


@dataclass(frozen=True)
class TaskEffort:
    """One corrected task.

    Attributes:
        task: Its id.
        model_version: Of the prediction that was shown.
        predicted_at: When that was stored (ISO 8601).
        pixels: Of the photo; 0 where nothing was predicted and nothing submitted.
        seconds: That the annotator took (`lead_time`), or None.
        effort: Pixels and boundaries.
        regions: By class.
        unknown: Classes that were drawn, and that the model was not asked for; they are in neither of the two.
    """

    task: int
    model_version: str
    predicted_at: str
    pixels: int
    seconds: float | None
    effort: Effort
    regions: Mapping[str, RegionCounts] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def counts(self) -> RegionCounts:
        """The regions of all classes together."""
        total = RegionCounts()
        for one in self.regions.values():
            total += one
        return total


# --- Masks ------------------------------------------------------------------------------------------------------------


def edit_effort(before: Mapping[str, Mask | None], after: Mapping[str, Mask | None]) -> Effort:
    """What has to change to turn one set of masks into another.

    Args:
        before: The prediction: class -> bool (height, width); None and a missing class say that it is absent.
        after: What it should be, in the same way.

    Raises:
        ValueError: Masks differ in size.
    """
    shapes = {mask.shape for masks in (before, after) for mask in masks.values() if mask is not None}
    if len(shapes) > 1:
        raise ValueError(f"masks of one photo have one size, not {sorted(shapes)}")
    found = {}
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        counts = [0 if mask is None else int(np.count_nonzero(mask)) for mask in (old, new)]
        if not any(counts):
            continue
        if old is None or new is None or not all(counts):
            found[name] = ClassEffort(counts[0], counts[1], sum(counts), None)
            continue
        changed = int(np.count_nonzero(old ^ new))
        found[name] = ClassEffort(counts[0], counts[1], changed, boundary_distance(old, new) if changed else 0.0)
    return Effort(found)


def boundary_distance(first: Mask, second: Mask) -> float:
    """How far apart two boundaries are, in pixels: the average symmetric surface distance.

    A boundary is the mask's pixels that touch the outside (by an edge) or the photo's border. The distance of every
    boundary pixel to the nearest one of the other mask is taken, Euclidean between centres of pixels; the mean of both
    directions, weighted alike.

    Args:
        first: bool (height, width) with a True.
        second: Of the same size, with a True.
    """
    box = mask_to_box(first | second)
    assert box is not None, "neither mask is empty"
    x0, y0, x1, y1 = box
    # One pixel around, so that masks end at the box, and at the photo's border
    boundaries = [_boundary(np.pad(mask[y0:y1, x0:x1], 1)) for mask in (first, second)]
    distances = [
        cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in boundaries
    ]
    return float((distances[1][boundaries[0]].mean() + distances[0][boundaries[1]].mean()) / 2)


def _boundary(padded: Mask) -> Mask:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(padded.view(np.uint8), cross).view(np.bool_)
    return padded & ~inner


# --- Tasks ------------------------------------------------------------------------------------------------------------


def task_effort(
    task: Mapping[str, Any],
    config: LabelConfig,
    renamed: Mapping[str, str] | None = None,
    unknown: Callable[[str], Collection[str]] = lambda version: (),
) -> TaskEffort:
    """What an annotator changed in a task, on all images that it shows.

    Args:
        task: With `id`, `data`, `annotations` and `predictions`, both with their `result`, as Label Studio lists tasks.
        config: The project's labelling configuration.
        renamed: Labels that were renamed: old name -> new name.
        unknown: The labels that a version (as its predictions carry it) cannot be asked for.

    Raises:
        DataError: The task cannot be compared: nothing was submitted, no prediction was shown, or a mask is damaged.
    """
    annotation = choose_annotation(task.get("annotations") or ())
    prediction = shown_prediction(annotation, task.get("predictions") or ())
    images = [image.config for image in config.of_task(task.get("data") or {})]
    old, new = (_regions(side, images, renamed) for side in (prediction, annotation))
    pixels, efforts, counts = 0, [], dict[str, RegionCounts]()
    for image, before, after in zip(images, old, new, strict=True):
        size = _size([*before.values(), *after.values()], image.name if len(images) > 1 else "")
        pixels += size[0] * size[1]
        efforts.append(edit_effort(_class_masks(before, size, "predicted"), _class_masks(after, size, "submitted")))
        told_apart = {query.name for query in image.classes if query.objects}
        for name, one in _compare_regions(before, after, size, told_apart).items():
            counts[name] = counts.get(name, RegionCounts())
            counts[name] += one
    seconds, version = annotation.get("lead_time"), str(prediction.get("model_version") or "unknown")
    predicted = {name for side in old for region in side.values() for name in _class_names(region)}
    not_asked = set(unknown(version)) - predicted
    effort = _together(efforts)
    drawn = tuple(name for name in effort.classes if name in not_asked)
    return TaskEffort(
        int(task["id"]),
        version,
        str(prediction.get("created_at") or ""),
        pixels,
        float(seconds) if isinstance(seconds, int | float) else None,
        Effort({name: one for name, one in effort.classes.items() if name not in not_asked}),
        {name: one for name, one in counts.items() if name not in not_asked},
        drawn,
    )


def _together(efforts: Sequence[Effort]) -> Effort:
    """The efforts of several images: pixels add up, the boundary of a class is the mean over the images."""
    if len(efforts) == 1:
        return efforts[0]
    found = {}
    for name in dict.fromkeys(name for effort in efforts for name in effort.classes):
        parts = [effort.classes[name] for effort in efforts if name in effort.classes]
        boundaries = [one.boundary for one in parts if one.boundary is not None]
        sums = (sum(getattr(one, what) for one in parts) for what in ("before", "after", "changed"))
        before, after, changed = sums
        found[name] = ClassEffort(before, after, changed, _mean(boundaries))
    return Effort(found)


def shown_prediction(annotation: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The prediction that an annotator began with.

    Label Studio notes it (`parent_prediction`) when a prediction becomes an annotation. Without the note (annotations
    that came through the API) it is the one that shares most region ids, else the newest of those that were there
    before the annotation.

    Raises:
        DataError: There is none, or the one that is noted is gone.
    """
    noted = annotation.get("parent_prediction")
    if noted is not None:
        for prediction in predictions:
            if prediction.get("id") == noted:
                return prediction
        raise DataError("the prediction that was shown is gone")
    ids = {region.get("id") for region in annotation.get("result") or ()}
    started = _time(annotation.get("created_at"))

    def key(prediction: Mapping[str, Any]) -> tuple[int, datetime, int]:
        shared = ids & {region.get("id") for region in prediction.get("result") or ()}
        return len(shared), _time(prediction.get("created_at")), int(prediction.get("id") or 0)

    earlier = [one for one in predictions if key(one)[0] or _time(one.get("created_at")) < started]
    if not earlier:
        raise DataError("no prediction was there when it was annotated")
    return max(earlier, key=key)


def _regions(
    annotation: Mapping[str, Any], images: Sequence[ImageConfig], renamed: Mapping[str, str] | None
) -> list[dict[str, Region]]:
    """The drawn regions of an annotation or a prediction by their id, for each image. One without an id gets one that
    no region of the other side has."""
    reading = read_regions(annotation.get("result") or (), images, renamed)
    return [
        {region.id or f"{id(region)}": region for region in regions if region.is_area} for regions in reading.of_image
    ]


def _size(regions: Sequence[Region], image: str) -> tuple[int, int]:
    """(height, width) of the image that regions were drawn on; (0, 0) without any."""
    of_image = f" of {image!r}" if image else ""
    unsized = next((region for region in regions if region.size is None), None)
    if unsized is not None:
        raise DataError(f"{unsized.name}{of_image} does not say the size of the photo")
    sizes = {region.size for region in regions if region.size is not None}
    if len(sizes) > 1:
        raise DataError(f"its regions{of_image} were drawn on photos of different sizes: {sorted(sizes)}")
    return sizes.pop() if sizes else (0, 0)


def _class_names(region: Region) -> list[str]:
    """The classes of a region: its labels, also such that the configuration no longer has; both sides may have them."""
    return [*(label.value for label in region.labels), *region.unknown_labels] or [NO_LABEL]


def _class_masks(regions: Mapping[str, Region], size: tuple[int, int], side: str) -> dict[str, Mask]:
    pairs = [(name, region) for region in regions.values() for name in _class_names(region)]
    try:
        return dict(regions_to_masks(pairs, size))
    except DataError as error:
        raise DataError(f"{side} {error}") from error


def _compare_regions(
    before: Mapping[str, Region], after: Mapping[str, Region], size: tuple[int, int], told_apart: Collection[str]
) -> dict[str, RegionCounts]:
    """By the class that a region has now, or had where it is deleted."""
    counts: dict[str, RegionCounts] = {}
    for id, region in after.items():
        one, old = counts.setdefault(_class_names(region)[0], RegionCounts()), before.get(id)
        if old is None:
            one.added += 1
        elif (old.kind, _class_names(old)) == (region.kind, _class_names(region)) and _same_pixels(old, region, size):
            one.accepted += 1
        else:
            one.changed += 1
    for id, region in before.items():
        if id not in after:
            counts.setdefault(_class_names(region)[0], RegionCounts()).deleted += 1
    touched = {name for name, one in counts.items() if one.changed or one.added or one.deleted}
    found = cuts_and_merges(before.values(), after.values(), touched & set(told_apart), size)
    for name, (cuts, merges) in found.items():
        counts[name] += RegionCounts(cut=cuts, merged=merges)
    return counts


def _same_pixels(old: Region, new: Region, size: tuple[int, int]) -> bool:
    """Whether two regions draw the same pixels, even if the editor wrote other run lengths or rounded percentages."""
    if old.value == new.value:
        return True
    return bool((region_to_mask(old, size) == region_to_mask(new, size)).all())


def _time(text: Any) -> datetime:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float | None:
    return float(np.mean(values)) if len(values) else None
