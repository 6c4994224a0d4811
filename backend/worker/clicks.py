"""What an annotator asks for with a smart tool: clicks and boxes, and the control to draw the answer in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lasagna.errors import ConfigError
from lasagna.formats.regions import Region, read_regions
from lasagna.labels.configuration import TaskImage
from lasagna.labels.parts import Control

_PROMPT_KINDS = ("brush", "bitmask", "magicwand", "polygon", "rectangle", "ellipse")
"""Controls in which the answer to a click is drawn, the best fit first."""

Point = tuple[float, float, bool]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompt:
    """What is asked for.

    Attributes:
        image: That was clicked on.
        control: To draw the answer in.
        class_name: Of the answer.
        points: x, y in percent, and whether it is on what is meant.
        box: x0, y0, x1, y1 in percent, or None.
    """

    image: TaskImage
    control: Control
    class_name: str
    points: list[Point]
    box: Box | None


def parse_prompt(regions: Iterable[Any], images: Sequence[TaskImage]) -> Prompt:
    """What an annotator asks for with a smart tool.

    The answer is drawn on the image that was clicked, in a control with that label: a brush before a polygon before a
    rectangle.

    Args:
        regions: `context.result` of the request: key points (with `is_positive`) and rectangles, in percent.
        images: That the task shows.

    Raises:
        ConfigError: No usable click or box, or a label that no control can draw.
    """
    reading = read_regions(regions, [image.config for image in images])
    found: Prompt | None = None
    for image, drawn in zip(images, reading.of_image, strict=True):
        points: list[Point] = []
        box: Box | None = None
        class_name = ""
        for region in drawn:
            if region.kind not in ("keypoint", "rectangle") or not region.labels:
                continue
            try:
                if region.kind == "keypoint":
                    points.append((_percent(region.value["x"]), _percent(region.value["y"]), region.is_positive))
                else:
                    box = _box(region)
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            class_name = region.labels[0].value
        if class_name:
            found = Prompt(image, _control(image, class_name), class_name, points, box)
    if found is None:
        raise ConfigError(_why_none([*(region for each in reading.of_image for region in each), *reading.elsewhere]))
    return found


def _control(image: TaskImage, class_name: str) -> Control:
    drawn = image.config.controls_for(class_name)
    for kind in _PROMPT_KINDS:
        fitting = [control for control, _ in drawn if control.kind == kind]
        if fitting:
            return min(fitting, key=lambda control: control.smart)  # not the prompt's own
    raise ConfigError(
        f"no control of the image {image.config.image_name!r} draws the label {class_name!r}, so there is nothing to "
        "draw the answer in; add it to BrushLabels, BitmaskLabels, PolygonLabels, RectangleLabels or EllipseLabels"
    )


def _why_none(regions: Sequence[Region]) -> str:
    if not regions:
        return "the request holds no click (a key point) and no box (a rectangle)"
    said = []
    for region in regions:
        what = {"keypoint": "a click", "rectangle": "a box"}.get(region.kind, "a region")
        if region.unknown_labels:
            said.append(f"{what} with the label {region.unknown_labels[0]!r}, which the configuration does not have")
        elif not region.labels:
            said.append(f"{what} without a label; choose one first")
        else:
            said.append(f"{what} on {region.where!r}")
    return f"the request holds no click or box that can be answered; it holds {', '.join(dict.fromkeys(said))}"


def _box(region: Region) -> Box:
    x, y, width, height = (_percent(region.value[name]) for name in ("x", "y", "width", "height"))
    return (x, y, x + width, y + height)


def _percent(value: Any) -> float:
    """A coordinate; ValueError where it is none: the editor draws a little beyond the edge, never far away."""
    found = float(value)
    if not -100 <= found <= 200:  # NaN is refused too
        raise ValueError(f"{value!r} is no place in an image")
    return found


def to_pixels(box: Box, width: int, height: int) -> Box:
    """A box in percent in pixels of an image."""
    x0, y0, x1, y1 = box
    return (x0 * width / 100, y0 * height / 100, x1 * width / 100, y1 * height / 100)
