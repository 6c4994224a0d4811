"""Label Studio predictions. Field by field what Label Studio 1.23 stores and draws, measured against a real server.

A prediction holds a region per class, control and part: the whole class as one brush mask, and one polygon or rectangle
per connected part. Absent classes go to the `Choices` named "absent" where the labelling configuration has one.
"""

import hashlib
from typing import Any

from lasagna.labels.configuration import Control, Label, LabelConfig
from lasagna.masks.conversions import drop_specks, mask_to_boxes, mask_to_brush_rle, mask_to_parts, mask_to_polygons
from lasagna.masks.ordering import task_score
from lasagna.masks.segmentation import Mask, Segmentation

TOLERANCE = 1.0
"""Pixels by which a polygon may leave the border of its mask."""

MIN_PART = 3e-4
"""Parts below this share of the image's pixels are dropped and holes filled (the largest part of a class stays)."""


def segmentation_to_label_studio(
    segmentation: Segmentation,
    label_config: LabelConfig,
    key: str,
    model_version: str,
    *,
    tolerance: float = TOLERANCE,
    min_part: float = MIN_PART,
    parts: bool = False,
) -> dict[str, Any]:
    """One prediction, as `/predict`, the import of tasks and the predictions API take it.

    Args:
        segmentation: The answers. Its size must be that of the upright image (see `load_image`).
        label_config: Where a class may be drawn. A class that no control of it names is left out.
        key: Identifies the task or image. Region ids are made from it, so the same input gives the same ids.
        model_version: Written into the prediction; Label Studio compares it with what `/setup` reports.
        tolerance: Of polygons, in pixels; see `mask_to_polygons`.
        min_part: Share of the image's pixels below which a connected part is dropped and a hole filled; the largest
            part of a class stays whatever its size.
        parts: Whether each connected part of a class, whatever its size, is a brush region of its own, too.

    Returns:
        `{"model_version", "score", "result": [region, ...]}`. A region's score is the probability of its class; the
        prediction's is `task_score`: tasks with a low score need work first.
    """
    height, width = segmentation.size
    min_area = 0.0 if parts else min_part * height * width
    regions: list[dict[str, Any]] = []
    drawn: set[str] = set()
    for answer in segmentation.present:
        if answer.name in drawn:  # a class asked twice is drawn once
            continue
        drawn.add(answer.name)
        for control, label in label_config.controls_for(answer.name):
            for part, value in enumerate(_values(answer.mask, control, tolerance, min_area, parts)):
                regions.append(
                    {
                        "id": _region_id(key, control.name, answer.name, part),
                        "from_name": control.name,
                        "to_name": control.to_name,
                        "type": f"{control.kind}labels",
                        "original_width": width,
                        "original_height": height,
                        "image_rotation": 0,
                        "score": round(float(answer.probability), 6),
                        "value": {**value, f"{control.kind}labels": [label.written]},
                    }
                )
    absent = absent_choices(segmentation, label_config)
    if absent:
        regions.append(
            {
                "id": _region_id(key, label_config.absent_choices, "", 0),
                "from_name": label_config.absent_choices,
                "to_name": label_config.image_name,
                "type": "choices",
                "value": {"choices": absent},
            }
        )
    return {"model_version": model_version, "score": round(task_score(segmentation), 6), "result": regions}


def absent_choices(segmentation: Segmentation, label_config: LabelConfig) -> list[str]:
    """What the `Choices` "absent" of the configuration lists for this image, in query order; empty without one."""
    written = dict(label_config.absent_values)
    return list(dict.fromkeys(written[answer.name] for answer in segmentation.absent if answer.name in written))


def region_to_label(region: dict[str, Any], label_config: LabelConfig) -> tuple[Control, Label] | None:
    """The control and label of a region that Label Studio sent; None for one that the configuration does not know."""
    control = next((c for c in label_config.controls if c.name == region.get("from_name")), None)
    value = region.get("value")
    written = value.get(f"{control.kind}labels") if control and isinstance(value, dict) else None
    is_named = isinstance(written, list) and written and isinstance(written[0], str)
    label = control.label_written(written[0]) if control and is_named else None  # type: ignore[index]
    return (control, label) if control and label else None


def _values(
    mask: Mask | None, control: Control, tolerance: float, min_area: float, parts: bool
) -> list[dict[str, Any]]:
    """The `value` of each region of one class in one control, without the label. Coordinates are percent."""
    if mask is None or not mask.any():
        return []
    height, width = mask.shape
    if control.kind == "brush" and parts:
        return [{"format": "rle", "rle": mask_to_brush_rle(part)} for part in mask_to_parts(mask)]
    if control.kind == "brush":
        return [{"format": "rle", "rle": mask_to_brush_rle(drop_specks(mask, min_area))}]
    if control.kind == "polygon":
        return [
            {"points": [[_percent(x, width), _percent(y, height)] for x, y in polygon], "closed": True}
            for polygon in mask_to_polygons(mask, tolerance, min_area)
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


def _percent(pixels: float, of: int) -> float:
    return round(100 * float(pixels) / of, 5)  # 5 decimals are 0.001 pixel of an image 10000 pixels wide


def _region_id(*parts: object) -> str:
    """Ten characters that are the same for the same parts: Label Studio drops a region whose id comes twice."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:10]
