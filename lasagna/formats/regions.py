"""What people and models drew in Label Studio: the one reader of a region. The other direction is
`lasagna.formats.label_studio`.

A region is one or several results with one id: the shape, and its labels where they stand in a tag of their own.
What always holds:

- Which image a region lies on is said by its `to_name` and `item_index` alone; what a shape is, by its type and value.
  So a region is read whichever control drew it, also one that the configuration no longer has.
- Coordinates are those of the image as it is stored, after EXIF orientation, also where it was turned in the editor:
  `image_rotation` only says how it was looked at.
- Nothing here raises for a region: what cannot be read is said by `Region.kind` "" or by `region_to_mask`.

Source of the format: Label Studio 1.23, measured against a real server and editor.
"""

import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lasagna.labels.parts import Control, ImageConfig, Label

_GEOMETRY = {
    "rle": "brush",
    "imageDataURL": "bitmask",
    "points": "polygon",
    "vertices": "line",
    "radiusX": "ellipse",
    "height": "rectangle",
    "x": "keypoint",
}
"""Which entry of a value says what a shape is, where its type does not; the first that is there."""
_KINDS = {
    "brush": "brush",
    "magicwand": "brush",
    "bitmask": "bitmask",
    "polygon": "polygon",
    "rectangle": "rectangle",
    "ellipse": "ellipse",
    "keypoint": "keypoint",
    "vector": "line",
}
"""What a shape is by the type of its result, less "labels"."""
AREAS = frozenset(("brush", "bitmask", "polygon", "rectangle", "ellipse"))
"""The kinds of shapes that are areas."""


@dataclass(frozen=True)
class Region:
    """One region.

    Attributes:
        id: Label Studio's; "" where it has none.
        control: Name of the control that drew it.
        kind: "brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint", "line", or "" for what is not known.
        value: Of the shape, with run lengths as bytes.
        labels: Of the configuration; several where a control takes several.
        unknown_labels: Labels that the configuration does not have, as they are written.
        size: (height, width) of the image that it was drawn on, as it says itself, or None.
        score: Of a prediction, or None.
        is_positive: Of a key point: whether it is on what is meant.
        where: The image and page that it says, for messages.
    """

    id: str
    control: str
    kind: str
    value: Mapping[str, Any] = field(repr=False)
    labels: tuple[Label, ...] = ()
    unknown_labels: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    score: float | None = None
    is_positive: bool = True
    where: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"region {self.id} of {self.control}"

    @property
    def is_area(self) -> bool:
        return self.kind in AREAS

    @property
    def is_labelled(self) -> bool:
        return bool(self.labels or self.unknown_labels)


@dataclass(frozen=True)
class Reading:
    """The regions of an annotation or a prediction.

    Attributes:
        of_image: For each image that was asked for, its regions in their order.
        elsewhere: Those of an image or page that is not among them.
    """

    of_image: tuple[tuple[Region, ...], ...]
    elsewhere: tuple[Region, ...]


def read_regions(
    result: Iterable[Any], images: Sequence[ImageConfig], renamed: Mapping[str, str] | None = None
) -> Reading:
    """The regions of a result, sorted by image.

    Choices, texts and relations are no regions. Labels are looked up in the control that wrote them; where the
    configuration does not have it any more, in all that draw on the image.

    Args:
        result: `result` of an annotation, a prediction or a draft, or the regions of an interactive request.
        images: Of the task (`LabelConfig.of_task`).
        renamed: Labels that were renamed: old name -> new name.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(result or ()):
        if isinstance(entry, Mapping) and isinstance(entry.get("value"), Mapping):
            entry = _named(entry)
            identity = _identity(entry, number)
            if any(_is_twin(one, entry) for one in groups.get(identity, ())):
                identity = (*identity, number)  # an id that came twice: two regions, whatever the editor makes of it
            groups.setdefault(identity, []).append(entry)
    found: list[list[Region]] = [[] for _ in images]
    elsewhere: list[Region] = []
    for entries in groups.values():
        place = _image_of(entries[0], images)
        region = _region(entries, images[place] if place is not None else None, images, renamed or {})
        if region is not None:
            (elsewhere if place is None else found[place]).append(region)
    return Reading(tuple(map(tuple, found)), tuple(elsewhere))


def _named(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """With names that are texts: the editor finds no tag where a program has written a list, say, of one."""
    odd = {key: str(entry[key]) for key in _NAMES if not isinstance(entry.get(key), str | int | None)}
    return {**entry, **odd} if odd else entry


_NAMES = ("from_name", "to_name", "item_index")


def _identity(entry: Mapping[str, Any], number: int) -> tuple[Any, ...]:
    """What the results of one region have in common: their id; without one, as in JSON_MIN, their shape."""
    where = (entry.get("to_name"), entry.get("item_index"))
    if entry.get("id") is not None:
        return ("id", str(entry["id"]), *where)
    shape = {key: value for key, value in entry["value"].items() if key in _SHAPE}
    return ("shape", json.dumps(shape, sort_keys=True, default=repr), *where) if shape else ("", number)


def _is_twin(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results cannot be of one region: both are shapes, or both are of one tag."""
    both_shapes = all(_KINDS.get(str(entry.get("type")).removesuffix("labels")) for entry in (one, other))
    return both_shapes or one.get("from_name") == other.get("from_name")


_SHAPE = frozenset((*_GEOMETRY, "y", "width", "radiusY", "rotation", "closed", "format"))


def _image_of(entry: Mapping[str, Any], images: Sequence[ImageConfig]) -> int | None:
    name, page = entry.get("to_name"), entry.get("item_index")
    if name is None:  # JSON_MIN has none
        name = next((i.image_name for i in images for c in i.controls if entry.get("from_name") in _names(c)), None)
        name = images[0].image_name if name is None and images else name
    for place, image in enumerate(images):
        if image.image_name == name and (image.item_index is None or image.item_index == (page or 0)):
            return place
    return None


def _region(
    entries: Sequence[Mapping[str, Any]],
    image: ImageConfig | None,
    images: Sequence[ImageConfig],
    renamed: Mapping[str, str],
) -> Region | None:
    controls = [control for each in ([image] if image else images) for control in each.controls]
    labellers = {control.labelled_by.name for control in controls if control.labelled_by}
    written = [pair for entry in entries for pair in _written(entry, labellers)]
    shapes = [entry for entry in entries if _kind(entry)]
    drawing = {control.name for control in controls}
    shape = next((entry for entry in shapes if entry.get("from_name") in drawing), shapes[0] if shapes else None)
    if shape is None and not written:
        return None
    shape = shape or entries[0]
    labels: dict[str, Label] = {}
    unknown: dict[str, None] = {}
    for from_name, text in written:
        own = [control for control in controls if from_name in _names(control)] or controls
        label = _label(own, text) or (_label(own, renamed[text]) if isinstance(text, str) and text in renamed else None)
        if label is None:
            unknown[text if isinstance(text, str) else " / ".join(map(str, text))] = None
        else:
            labels[label.value] = label
    page = shape.get("item_index")
    return Region(
        id=str(shape.get("id") or ""),
        control=str(shape.get("from_name")),
        kind=_kind(shape) or _KINDS.get(_kind_of_control(shape, controls), ""),
        value=_compact(shape["value"]),
        labels=tuple(labels.values()),
        unknown_labels=tuple(unknown),
        size=_size(shape),
        score=shape["score"] if isinstance(shape.get("score"), int | float) else None,
        is_positive=bool(shape.get("is_positive", True)),
        where=f"{shape.get('to_name')}" + (f", page {page + 1}" if isinstance(page, int) else ""),
    )


def _label(controls: Iterable[Control], written: Any) -> Label | None:
    return next((found for control in controls if (found := control.label_written(written)) is not None), None)


def _names(control: Control) -> tuple[str, ...]:
    return (control.name, control.labelled_by.name) if control.labelled_by else (control.name,)


def _kind(entry: Mapping[str, Any]) -> str:
    """What the shape of a result is; "" where it has none."""
    by_type = _KINDS.get(str(entry.get("type")).removesuffix("labels"))
    return by_type or next((kind for key, kind in _GEOMETRY.items() if key in entry["value"]), "")


def _kind_of_control(entry: Mapping[str, Any], controls: Iterable[Control]) -> str:
    return next((control.kind for control in controls if control.name == entry.get("from_name")), "")


def _written(entry: Mapping[str, Any], labellers: Container[str]) -> list[tuple[Any, Any]]:
    """The labels of a result with the tag that wrote them."""
    found = []
    for key, texts in entry["value"].items():
        is_labeller = key in ("taxonomy", "choices") and entry.get("from_name") in labellers
        if (key.endswith("labels") or is_labeller) and isinstance(texts, list):
            found += [(entry.get("from_name"), text) for text in texts if isinstance(text, str | list)]
    return found


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    found = [entry.get("original_height"), entry.get("original_width")]
    known = [int(side) for side in found if isinstance(side, int | float) and 0 < side < math.inf]
    return (known[0], known[1]) if len(known) == 2 else None


def _compact(value: Mapping[str, Any]) -> dict[str, Any]:
    """The shape with its run lengths as bytes: as a list of ints they take eight times the memory."""
    shape = {key: one for key, one in value.items() if key in _SHAPE}
    try:
        return {**shape, "rle": bytes(shape["rle"])} if isinstance(shape.get("rle"), list) else shape
    except (TypeError, ValueError):
        return shape  # whoever reads the mask is told that it is damaged
