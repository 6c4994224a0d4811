"""Label Studio predictions. Field by field what Label Studio 1.23 stores and draws, measured against a real server.

A prediction holds a region per image, class, control and object, where the class's objects are told apart. Of another
class it is the whole as one brush mask or bitmask, and one polygon, rectangle or ellipse per connected part. Absent
classes go to the `Choices` named "absent" where the labelling configuration has one. Unknown classes are in neither;
that `Choices` names them in its meta.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from lasagna.formats.pieces import pieces_of
from lasagna.labels.parts import Control, ImageConfig, Label
from lasagna.masks.bitmask import mask_to_bitmask
from lasagna.masks.conversions import (
    Box,
    Polygon,
    drop_specks,
    mask_to_box,
    mask_to_boxes,
    mask_to_brush_rle,
    mask_to_polygon,
    mask_to_polygons,
)
from lasagna.masks.ellipses import Ellipse, mask_to_ellipse, mask_to_ellipses
from lasagna.masks.ordering import task_score
from lasagna.masks.segmentation import ClassAnswer, Mask, Segmentation

TOLERANCE = 1.0
"""Pixels by which a polygon may leave the border of its mask."""

_Shape = Polygon | Ellipse | Box

MIN_PART = 3e-4
"""Parts below this share of the image's pixels are dropped and holes filled (the largest part of a class stays)."""


def segmentation_to_label_studio(
    segmentation: Segmentation,
    config: ImageConfig,
    key: str,
    model_version: str,
    *,
    tolerance: float = TOLERANCE,
    min_part: float = MIN_PART,
    parts: bool = False,
) -> dict[str, Any]:
    """One prediction of one image, as `/predict`, the import of tasks and the predictions API take it.

    Args:
        segmentation: The answers. Its size must be that of the upright image (see `load_image`).
        config: Where a class may be drawn. A class that no control of it names is left out.
        key: Identifies the task and image. Region ids are made from it, so the same input gives the same ids.
        model_version: Written into the prediction; Label Studio compares it with what `/setup` reports.
        tolerance: Of polygons, in pixels; see `mask_to_polygons`.
        min_part: Share of the image's pixels below which a connected part is dropped and a hole filled; the largest
            part of an object, or of a class, stays whatever its size.
        parts: Of classes whose objects are not told apart: whether each connected part, whatever its size, is a region
            of its own also where it is drawn by pixels (brush, bitmask).

    Returns:
        `{"model_version", "score", "result": [region, ...]}`. A region's score is its object's, else the probability of
        its class; the prediction's is `task_score`: tasks with a low score need work first.
    """
    height, width = segmentation.size
    min_area = 0.0 if parts else min_part * height * width
    results: list[dict[str, Any]] = []
    drawn: set[str] = set()
    for answer in segmentation.present:
        if answer.name in drawn:  # a class asked twice is drawn once
            continue
        drawn.add(answer.name)
        for control, label in config.controls_for(answer.name):
            for part, (value, score) in enumerate(_values(answer, control, tolerance, min_area, parts)):
                shared = {
                    "id": _region_id(key, control.name, answer.name, part),
                    "to_name": control.to_name,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": round(score, 6),
                    **_page(config),
                }
                results += [{**shared, **each} for each in _results(control, label, value)]
    absent = absent_choices(segmentation, config)
    if absent:
        results.append(
            {
                "id": _region_id(key, config.absent_choices, "", 0),
                "from_name": config.absent_choices,
                "to_name": config.image_name,
                "type": "choices",
                "value": {"choices": absent},
                **_unknown_meta(segmentation),
            }
        )
    return {"model_version": model_version, "score": round(task_score(segmentation), 6), "result": results}


def join_predictions(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The prediction of a task that shows several images, of one for each: its score is the lowest."""
    result = [region for prediction in predictions for region in prediction["result"]]
    return {**predictions[0], "score": min(p["score"] for p in predictions), "result": result}


def absent_choices(segmentation: Segmentation, config: ImageConfig) -> list[str]:
    """What the `Choices` "absent" of the configuration lists for this image, in query order; empty without one."""
    written = dict(config.absent_values)
    return list(dict.fromkeys(written[answer.name] for answer in segmentation.absent if answer.name in written))


def _unknown_meta(segmentation: Segmentation) -> dict[str, Any]:
    """What the editor shows as a result's note: the classes that the model was not asked for."""
    names = list(dict.fromkeys(answer.name for answer in segmentation.unknown))
    return {"meta": {"text": [f"not known to the model, and not looked for: {', '.join(names)}"]}} if names else {}


def _results(control: Control, label: Label, value: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of one region: one, or two where its labels stand in a tag of their own, each with the shape, as the
    editor writes them."""
    if control.labelled_by is None:
        written = {control.result_type: [label.written]}
        return [{"from_name": control.name, "type": control.result_type, "value": {**value, **written}}]
    labeller = control.labelled_by
    return [
        {"from_name": control.name, "type": control.result_type, "value": value},
        {"from_name": labeller.name, "type": labeller.kind, "value": {**value, **labeller.write(label)}},
    ]


def _page(config: ImageConfig) -> dict[str, int]:
    return {} if config.item_index is None else {"item_index": config.item_index}


def _values(
    answer: ClassAnswer, control: Control, tolerance: float, min_area: float, parts: bool
) -> Iterator[tuple[dict[str, Any], float]]:
    """The `value` of each region of one class in one control, without the label, and its score. Coordinates are
    percent."""
    told = answer.objects is not None
    by_pixels = control.kind in ("brush", "magicwand", "bitmask")
    for mask, score in pieces_of(answer, parts=parts and by_pixels):
        if by_pixels:
            yield _pixels(mask, control, min_area), score
            continue
        shapes = _object_shape if told else _part_shapes
        for shape in shapes(mask, control, tolerance, min_area):
            yield _geometry(shape, mask.shape), score


def _part_shapes(mask: Mask, control: Control, tolerance: float, min_area: float) -> Sequence[_Shape]:
    """A shape for each connected part of a class."""
    if control.kind == "polygon":
        return mask_to_polygons(mask, tolerance, min_area)
    return mask_to_ellipses(mask, min_area) if control.kind == "ellipse" else mask_to_boxes(mask, min_area)


def _object_shape(mask: Mask, control: Control, tolerance: float, min_area: float) -> Sequence[_Shape]:
    """The one shape of an object, whose parts belong together."""
    found: _Shape | None
    if control.kind == "polygon":
        found = mask_to_polygon(mask, tolerance, min_area)
    elif control.kind == "ellipse":
        found = mask_to_ellipse(mask)
    else:
        found = mask_to_box(drop_specks(mask, min_area))
    return [] if found is None else [found]


def _geometry(shape: _Shape, size: tuple[int, ...]) -> dict[str, Any]:
    height, width = size
    if isinstance(shape, Ellipse):
        return {
            "x": _percent(shape.x, width),
            "y": _percent(shape.y, height),
            "radiusX": _percent(shape.radius_x, width),
            "radiusY": _percent(shape.radius_y, height),
            "rotation": round(shape.rotation, 3),
        }
    if isinstance(shape, tuple):
        x0, y0, x1, y1 = shape
        return {
            "x": _percent(x0, width),
            "y": _percent(y0, height),
            "width": _percent(x1 - x0, width),
            "height": _percent(y1 - y0, height),
            "rotation": 0,
        }
    return {"points": [[_percent(x, width), _percent(y, height)] for x, y in shape], "closed": True}


def _pixels(mask: Mask, control: Control, min_area: float) -> dict[str, Any]:
    mask = drop_specks(mask, min_area)
    if control.kind == "bitmask":
        return {"imageDataURL": mask_to_bitmask(mask)}
    return {"format": "rle", "rle": mask_to_brush_rle(mask)}


def _percent(pixels: float, of: int) -> float:
    return round(100 * float(pixels) / of, 5)  # 5 decimals are 0.001 pixel of an image 10000 pixels wide


def _region_id(*parts: object) -> str:
    """Ten characters that are the same for the same parts: Label Studio drops a region whose id comes twice."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:10]
