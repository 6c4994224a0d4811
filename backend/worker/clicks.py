"""What an annotator asks for with a smart tool: clicks and boxes, and the control to draw the answer in."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lasagna.errors import ConfigError
from lasagna.formats.label_studio import region_to_label
from lasagna.labels.configuration import Control, LabelConfig

_PROMPT_KINDS = ("brush", "polygon", "rectangle")
"""Controls in which the answer to a click is drawn, the best fit first."""

Point = tuple[float, float, bool]
Box = tuple[float, float, float, float]


def parse_prompt(regions: Iterable[Any], plan: LabelConfig) -> tuple[Control, str, list[Point], Box | None]:
    """What an annotator asks for with a smart tool.

    Args:
        regions: `context.result` of the request: key points (with `is_positive`) and rectangles, in percent.
        plan: The labelling configuration.

    Returns:
        The control to draw the answer in (brush, else polygon, else rectangle with that label), the class, the points
        (x, y, positive) and the box (x0, y0, x1, y1), both in percent.

    Raises:
        ConfigError: No usable click or box, or a label that no control can draw.
    """
    points: list[Point] = []
    box: Box | None = None
    class_name: str | None = None
    for region in regions:
        value = region.get("value") if isinstance(region, Mapping) else None
        found = region_to_label(region, plan) if isinstance(value, dict) else None
        if value is None or found is None:
            continue
        control, label = found
        try:
            if control.kind == "keypoint":
                x, y = (_percent(value[name]) for name in ("x", "y"))
                points.append((x, y, bool(region.get("is_positive", True))))
            elif control.kind == "rectangle":
                x, y, width, height = (_percent(value[name]) for name in ("x", "y", "width", "height"))
                box = (x, y, x + width, y + height)
            else:
                continue
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        class_name = label.value
    if class_name is None:
        raise ConfigError("the request holds no click (KeyPointLabels) or box (RectangleLabels) with a known label")
    drawn = plan.controls_for(class_name)
    for kind in _PROMPT_KINDS:
        fitting = [control for control, _ in drawn if control.kind == kind]
        if fitting:
            return min(fitting, key=lambda control: control.smart), class_name, points, box  # not the prompt's own
    raise ConfigError(
        f"the label {class_name!r} is in no BrushLabels, PolygonLabels or RectangleLabels, so there is nothing to draw "
        "the answer in; add it to one"
    )


def _percent(value: Any) -> float:
    """A coordinate; ValueError where it is none: the editor draws a little beyond the edge, never far away."""
    found = float(value)
    if not -100 <= found <= 200:  # NaN is refused too
        raise ValueError(f"{value!r} is no place in an image")
    return found


def without_prompts(plan: LabelConfig) -> LabelConfig:
    """A labelling configuration without controls that only take boxes for the smart tool: smart ones whose labels are
    all in another control of the same kind. Else every rectangle would be drawn twice."""

    def is_prompt(control: Control) -> bool:
        others = {label.value for c in plan.controls if c.kind == control.kind and not c.smart for label in c.labels}
        return control.smart and all(label.value in others for label in control.labels)

    return replace(plan, controls=tuple(control for control in plan.controls if not is_prompt(control)))


def to_pixels(box: Box, width: int, height: int) -> Box:
    """A box in percent in pixels of an image."""
    x0, y0, x1, y1 = box
    return (x0 * width / 100, y0 * height / 100, x1 * width / 100, y1 * height / 100)
