"""Whether a prediction is one that Label Studio draws.

It stores others too, says nothing, and draws them grey, striped or not at all.
Field by field what was measured with Label Studio 1.23.2.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lasagna.errors import DataError
from lasagna.formats.annotations import region_to_mask
from lasagna.formats.regions import read_regions
from lasagna.labels.parts import Control, ImageConfig

_PERCENT = ("x", "y", "width", "height", "radiusX", "radiusY")


def misfits(
    result: Sequence[Mapping[str, Any]], images: Sequence[ImageConfig], sizes: Sequence[tuple[int, int] | None]
) -> list[str]:
    """What is wrong with the regions of a prediction, in words; empty where they fit.

    Args:
        result: Its results.
        images: That the task shows, with the controls that the results are drawn in.
        sizes: Width and height of each upright image in pixels; None: not known.
    """
    found = [f"{_named(entry)} {fault}" for entry in result for fault in _faults(entry, images, sizes)]
    # a region whose labels stand in a tag of their own has two results, which differ in their control
    ids = Counter((entry.get("id"), entry.get("from_name")) for entry in result)
    return found + [f"the id {id!r} comes {count} times" for (id, _), count in ids.items() if count > 1 and id]


def _named(entry: Mapping[str, Any]) -> str:
    return f"region {entry['id']}" if entry.get("id") else "a region without an id"


def _faults(
    entry: Mapping[str, Any], images: Sequence[ImageConfig], sizes: Sequence[tuple[int, int] | None]
) -> Iterator[str]:
    if entry.get("id") is None:
        yield "breaks the editor"
    name, kind = entry.get("from_name"), str(entry.get("type"))
    if any(name in (image.absent_choices, image.answer_area) for image in images) and name is not None:
        return
    pairs = [(image, control) for image in images for control in image.controls if name in _tags(control)]
    if not pairs:
        yield f"is for the control {name!r}, which the configuration does not have"
        return
    place = (entry.get("to_name"), entry.get("item_index"))
    chosen = [(image, control) for image, control in pairs if (image.image_name, image.item_index) == place]
    if not chosen:
        yield f"is for the image {_shown(*place)}, and {name!r} draws on {_shown_all(pairs)}"
    image, control = (chosen or pairs)[0]
    expected = _type(control, str(name))
    if kind != expected:
        yield f"is of the type {kind!r}, and {name!r} draws {expected}"
        return
    yield from _label_faults(entry, control, str(name), kind)
    size = sizes[images.index(image)]
    drawn_on = (entry.get("original_width"), entry.get("original_height"))
    if size is not None and drawn_on != size:
        yield f"is of an image of {drawn_on[0]} x {drawn_on[1]} pixels, and this one has {size[0]} x {size[1]}"
    if size is not None:
        yield from _shape_faults(entry, image, size)


def _tags(control: Control) -> tuple[str, ...]:
    return (control.name, control.labelled_by.name) if control.labelled_by else (control.name,)


def _type(control: Control, name: str) -> str:
    """The type of a result that a control, or the tag that names its regions, writes."""
    is_labeller = control.labelled_by is not None and name == control.labelled_by.name
    return control.labelled_by.kind if is_labeller and control.labelled_by else control.result_type


def _label_faults(entry: Mapping[str, Any], control: Control, name: str, kind: str) -> Iterator[str]:
    if kind == control.result_type and control.labelled_by is not None:
        return  # the shape alone
    labels = (entry.get("value") or {}).get(kind) or []
    unknown = [label for label in labels if control.label_written(label) is None]
    if unknown or not labels:
        yield f"has the label {unknown[0]!r}, which {name!r} does not have" if unknown else "has no label"


def _shape_faults(entry: Mapping[str, Any], image: ImageConfig, size: tuple[int, int]) -> Iterator[str]:
    value = entry.get("value") or {}
    placed = {**entry, "to_name": image.image_name, "item_index": image.item_index}
    [regions] = read_regions([{**placed, "original_width": None}], [image]).of_image
    for region in regions:
        if region.kind in ("brush", "bitmask"):
            try:
                mask = region_to_mask(region, (size[1], size[0]))
            except DataError as error:
                yield f"cannot be drawn: {str(error).removeprefix(f'{region.name}: ')}"
                return
            if not mask.any():
                yield "has a mask that cannot be seen: no pixel of it is opaque (0 and 255 are the values, not 0 and 1)"
        elif region.kind == "polygon":
            if any(not 0 <= number <= 100 for point in value.get("points") or () for number in point):
                yield "has points beyond the image: coordinates are percent"
        elif any(not 0 <= float(value.get(name) or 0) <= 100 for name in _PERCENT):
            yield "lies beyond the image: coordinates are percent"


def _shown(name: Any, page: Any) -> str:
    return repr(name) if page is None else f"{name!r}, page {page + 1 if isinstance(page, int) else page!r}"


def _shown_all(pairs: Sequence[tuple[ImageConfig, Control]]) -> str:
    return " and ".join(dict.fromkeys(_shown(image.image_name, image.item_index) for image, _ in pairs))
