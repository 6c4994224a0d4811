"""Label Studio predictions. Field by field what Label Studio 1.23 stores and draws, measured against a real server.

A prediction holds a region per image, class, control and part: the whole class as one brush mask or bitmask, and one
polygon, rectangle or ellipse per connected part. Absent classes go to the `Choices` named "absent" where the labelling
configuration has one. Unknown classes are in neither; that `Choices` names them in its meta.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from lasagna.labels.parts import Control, ImageConfig, Label
from lasagna.masks.bitmask import mask_to_bitmask
from lasagna.masks.conversions import drop_specks, mask_to_boxes, mask_to_brush_rle, mask_to_parts, mask_to_polygons
from lasagna.masks.ellipses import mask_to_ellipses
from lasagna.masks.ordering import task_score
from lasagna.masks.segmentation import Mask, Segmentation

TOLERANCE = 1.0
"""Pixels by which a polygon may leave the border of its mask."""

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
            part of a class stays whatever its size.
        parts: Whether each connected part of a class, whatever its size, is a region of its own also where it is drawn
            by pixels (brush, bitmask).

    Returns:
        `{"model_version", "score", "result": [region, ...]}`. A region's score is the probability of its class; the
        prediction's is `task_score`: tasks with a low score need work first.
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
            for part, value in enumerate(_values(answer.mask, control, tolerance, min_area, parts)):
                shared = {
                    "id": _region_id(key, control.name, answer.name, part),
                    "to_name": control.to_name,
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": round(float(answer.probability), 6),
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
    mask: Mask | None, control: Control, tolerance: float, min_area: float, parts: bool
) -> list[dict[str, Any]]:
    """The `value` of each region of one class in one control, without the label. Coordinates are percent."""
    if mask is None or not mask.any():
        return []
    height, width = mask.shape
    if control.kind in ("brush", "magicwand", "bitmask"):
        pieces = mask_to_parts(mask) if parts else [drop_specks(mask, min_area)]
        return [_pixels(piece, control) for piece in pieces]
    if control.kind == "polygon":
        return [
            {"points": [[_percent(x, width), _percent(y, height)] for x, y in polygon], "closed": True}
            for polygon in mask_to_polygons(mask, tolerance, min_area)
        ]
    if control.kind == "ellipse":
        return [
            {
                "x": _percent(ellipse.x, width),
                "y": _percent(ellipse.y, height),
                "radiusX": _percent(ellipse.radius_x, width),
                "radiusY": _percent(ellipse.radius_y, height),
                "rotation": round(ellipse.rotation, 3),
            }
            for ellipse in mask_to_ellipses(mask, min_area)
        ]
    return [
        {
            "x": _percent(x0, width),
            "y": _percent(y0, height),
            "width": _percent(x1 - x0, width),
            "height": _percent(y1 - y0, height),
            "rotation": 0,
        }
        for x0, y0, x1, y1 in mask_to_boxes(mask, min_area)
    ]


def _pixels(mask: Mask, control: Control) -> dict[str, Any]:
    if control.kind == "bitmask":
        return {"imageDataURL": mask_to_bitmask(mask)}
    return {"format": "rle", "rle": mask_to_brush_rle(mask)}


def _percent(pixels: float, of: int) -> float:
    return round(100 * float(pixels) / of, 5)  # 5 decimals are 0.001 pixel of an image 10000 pixels wide


def _region_id(*parts: object) -> str:
    """Ten characters that are the same for the same parts: Label Studio drops a region whose id comes twice."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:10]
