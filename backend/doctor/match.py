"""Whether a prediction is one that Label Studio draws.

It stores others too, says nothing, and draws them grey, striped or not at all.
Field by field what was measured with Label Studio 1.23.2.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lasagna.errors import DataError
from lasagna.labels.configuration import Control, LabelConfig
from lasagna.masks.conversions import brush_rle_to_mask

_PERCENT = ("x", "y", "width", "height")


def misfits(result: Sequence[Mapping[str, Any]], plan: LabelConfig, size: tuple[int, int]) -> list[str]:
    """What is wrong with the regions of a prediction, in words; empty where they fit.

    Args:
        result: Its regions.
        plan: The labelling configuration that they are drawn under.
        size: Width and height of the upright image, in pixels.
    """
    found = [f"{_named(region)} {fault}" for region in result for fault in _faults(region, plan, size)]
    ids = Counter(region.get("id") for region in result)
    return found + [f"the id {each!r} comes {count} times" for each, count in ids.items() if count > 1]


def _named(region: Mapping[str, Any]) -> str:
    return f"region {region['id']}" if region.get("id") else "a region without an id"


def _faults(region: Mapping[str, Any], plan: LabelConfig, size: tuple[int, int]) -> Iterator[str]:
    if region.get("id") is None:
        yield "breaks the editor"
    name, kind = region.get("from_name"), str(region.get("type"))
    if name in (plan.absent_choices, plan.answer_area) and name is not None:
        return
    control = next((control for control in plan.controls if control.name == name), None)
    if control is None:
        yield f"is for the control {name!r}, which the configuration does not have"
        return
    if region.get("to_name") != control.to_name:
        yield f"is for the image {region.get('to_name')!r}, and {name!r} draws on {control.to_name!r}"
    if kind != f"{control.kind}labels":
        yield f"is of the type {kind!r}, and {name!r} draws {control.kind}labels"
        return
    value = region.get("value") or {}
    labels = value.get(kind) or []
    unknown = [label for label in labels if control.label_written(label) is None]
    if unknown or not labels:
        yield f"has the label {unknown[0]!r}, which {name!r} does not have" if unknown else "has no label"
    drawn_on = (region.get("original_width"), region.get("original_height"))
    if drawn_on != size:
        yield f"is of an image of {drawn_on[0]} x {drawn_on[1]} pixels, and this one has {size[0]} x {size[1]}"
    yield from _shape(control, value, size)


def _shape(control: Control, value: Mapping[str, Any], size: tuple[int, int]) -> Iterator[str]:
    if control.kind == "brush":
        try:
            mask = brush_rle_to_mask(value.get("rle") or [], (size[1], size[0]))
        except DataError as error:
            yield f"cannot be drawn: {error}"
            return
        if not mask.any():
            yield "has a mask that cannot be seen: no pixel of it is opaque (0 and 255 are the values, not 0 and 1)"
    elif control.kind == "polygon":
        if any(not 0 <= number <= 100 for point in value.get("points") or () for number in point):
            yield "has points beyond the image: coordinates are percent"
    elif any(not 0 <= float(value.get(name) or 0) <= 100 for name in _PERCENT):
        yield "lies beyond the image: coordinates are percent"
