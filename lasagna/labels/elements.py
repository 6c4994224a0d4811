"""The XML of a labelling configuration as images, controls and labels, and what is left over."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import get_args
from xml.etree.ElementTree import Element

from lasagna.errors import ConfigError
from lasagna.labels.parts import Control, ImageConfig, Kind, Label, Labeller, NotServed
from lasagna.labels.task_data import TEMPLATE_NAME, attributes, dynamic_value, tag_of

ABSENT, _ANSWER = "absent", "answer"

_SHAPES: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
"""Tags that draw and take their labels from a tag of its own."""
_LABELLED: dict[str, Kind] = {f"{kind}labels": kind for kind in get_args(Kind) if kind != "magicwand"}
"""Tags that draw and hold their labels."""
_NAMES = {"brush": "Brush", "bitmask": "Bitmask", "polygon": "Polygon", "rectangle": "Rectangle", "ellipse": "Ellipse"}
_NAMES |= {"keypoint": "KeyPoint", "magicwand": "Brush"}
"""As they are written, of the tags that hold their labels."""
_LINES = ("vector", "vectorlabels")
_BY_PEOPLE = ("choices", "textarea", "taxonomy", "rating", "number", "datetime", "pairwise", "ranker")
_NO_CONTROL = ("filter", "relations")


class Tag:
    """An XML element whose tag and attribute names are compared without case, as the editor does."""

    def __init__(self, element: Element) -> None:
        self.tag = tag_of(element)
        self.variable = dynamic_value(element)
        self._element, self._attributes = element, attributes(element)

    def __str__(self) -> str:
        return f'<{self._element.tag} name="{self.get("name") or ""}">'

    def get(self, name: str) -> str | None:
        """The attribute without surrounding white space; None where it is missing or blank."""
        return (self._attributes.get(name.lower()) or "").strip() or None

    def is_on(self, name: str) -> bool:
        return (self.get(name) or "").lower() == "true"

    @functools.cached_property
    def targets(self) -> list[str]:
        names = ((self.get("toName") or "").replace(" ", "")).split(",")
        return [name for name in dict.fromkeys(names) if name]

    @functools.cached_property
    def labels(self) -> tuple[Label, ...]:
        """The labels that it holds."""
        return _leaves(self) if self.tag == "taxonomy" else _labels(self)

    def inside(self, tag: str) -> "list[Tag]":
        return [Tag(element) for element in self._element.iter() if tag_of(element) == tag]

    def children(self, tag: str) -> "list[Tag]":
        return [Tag(element) for element in self._element if tag_of(element) == tag]


class Tags:
    """All elements of a configuration, in order. A configuration may have thousands of images and of controls: neither
    is looked through for each of the other."""

    def __init__(self, root: Element) -> None:
        self._tags = [Tag(element) for element in root.iter() if tag_of(element)]
        self._by_target: dict[str, list[Tag]] = {}
        for tag in self._tags:
            for target in tag.targets:
                self._by_target.setdefault(target, []).append(tag)

    def of_image(self, name: str) -> "list[Tag]":
        """The tags whose toName names an image, or another object."""
        return self._by_target.get(name, [])

    def __iter__(self) -> Iterator[Tag]:
        return iter(self._tags)


def image_configs(tags: Tags, *, with_dynamic: bool = False) -> tuple[ImageConfig, ...]:
    """The images with their controls, in order.

    Args:
        with_dynamic: Keep controls whose labels stand in the tasks alone.

    Raises:
        ConfigError: The `Choices` "absent" takes only one choice.
    """
    found = []
    for tag in tags:
        name = tag.get("name")
        if tag.tag == "image" and name is not None:
            controls = tuple(c for c in _controls(tags, name) if c.labels or (with_dynamic and c.is_dynamic))
            absent, values = _absent_choices(tags, name)
            found.append(
                ImageConfig(
                    image_name=name,
                    value=tag.get("value") or "",
                    value_list=tag.get("valueList"),
                    controls=controls,
                    absent_choices=absent,
                    absent_values=values,
                    question_area=_text_area(tags, name, lambda area: area.is_on("smart")),
                    answer_area=_text_area(tags, name, lambda area: area.get("name") == _ANSWER),
                    template_name=tag.get(TEMPLATE_NAME) or name,
                    is_page=tag.is_on("paged"),
                )
            )
    return tuple(found)


def _controls(tags: Tags, image: str) -> Iterator[Control]:
    labellers = _labellers(tags, image)
    for tag in tags.of_image(image):
        name = tag.get("name")
        if name is None:
            continue
        smart = tag.is_on("smart")
        if kind := _LABELLED.get(tag.tag):
            yield Control(name, kind, image, tag.labels, smart, variable=tag.variable)
        elif kind := _SHAPES.get(tag.tag):
            for labeller, source in labellers:
                yield Control(name, kind, image, source.labels, smart, labeller, source.variable)


def _labellers(tags: Tags, image: str) -> list[tuple[Labeller, Tag]]:
    """The tags that name regions: `Labels`; where there are none, the first `Taxonomy` or `Choices` of regions."""
    of_image = [tag for tag in tags.of_image(image) if tag.get("name")]
    named = [(Labeller(tag.get("name") or "", "labels"), tag) for tag in of_image if tag.tag == "labels"]
    for kind in ("taxonomy", "choices") if not named else ():
        for tag in of_image:
            if tag.tag == kind and tag.is_on("perRegion") and tag.get("name") != ABSENT:
                return [(Labeller(tag.get("name") or "", "taxonomy" if kind == "taxonomy" else "choices"), tag)]
    return named


def _labels(tag: Tag) -> tuple[Label, ...]:
    labels: dict[str, Label] = {}
    for each in tag.inside("choice" if tag.tag == "choices" else "label"):
        value = each.get("value")
        if value is not None and value not in labels:
            predicted = [text.strip() for text in (each.get("predicted_values") or "").split(",")]
            texts = tuple(text for text in predicted if text)
            threshold = label_threshold(value, each.get("threshold"))
            objects = _label_objects(value, each.get("objects"))
            labels[value] = Label(
                value, each.get("alias"), each.get("hint"), texts, threshold=threshold, objects=objects
            )
    return tuple(labels.values())


def label_threshold(label: str, written: str | None) -> float | None:
    """The `threshold` of a `<Label>`; None without one. Raises ConfigError for what is no probability."""
    if written is None:
        return None
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(
            f'<Label value="{label}" threshold="{written}">: a threshold is a probability between 0 and 1, such as 0.3'
        )
    return value


def _label_objects(label: str, written: str | None) -> bool | None:
    """The `objects` of a `<Label>`; None without one. Raises ConfigError for what is neither true nor false."""
    if written is None:
        return None
    if written.lower() not in ("true", "false"):
        raise ConfigError(
            f'<Label value="{label}" objects="{written}">: objects="true" makes each object a region of its own, '
            'objects="false" does not; write one of the two'
        )
    return written.lower() == "true"


def _leaves(taxonomy: Tag) -> tuple[Label, ...]:
    """The ends of a taxonomy. What stands above others is the union of them, and not asked."""

    def below(tag: Tag, names: tuple[str, ...], path: tuple[str, ...]) -> Iterator[Label]:
        for choice in tag.children("choice"):
            value, alias = choice.get("value"), choice.get("alias")
            if value is None:
                continue
            way, steps = (*names, value), (*path, alias or value)
            if choice.children("choice"):
                yield from below(choice, way, steps)
            else:
                threshold = label_threshold(value, choice.get("threshold"))
                objects = _label_objects(value, choice.get("objects"))
                yield Label(
                    " / ".join(way), alias, choice.get("hint"), path=steps, threshold=threshold, objects=objects
                )

    return tuple({label.value: label for label in below(taxonomy, (), ())}.values())


def _text_area(tags: Tags, image: str, wanted: Callable[[Tag], bool]) -> str | None:
    areas = [tag for tag in tags.of_image(image) if tag.tag == "textarea" and len(tag.targets) == 1 and tag.get("name")]
    return next((area.get("name") for area in areas if wanted(area)), None)


def _absent_choices(tags: Tags, image: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    for tag in tags.of_image(image):
        if tag.tag == "choices" and tag.get("name") == ABSENT and len(tag.targets) == 1:
            if (tag.get("choice") or "").lower() != "multiple":
                raise ConfigError(
                    '<Choices name="absent"> lists the classes that are absent from an image, so it must take several: '
                    'add choice="multiple"'
                )
            choices = [(choice.get("value"), choice.get("alias")) for choice in tag.inside("choice")]
            return ABSENT, tuple((value, alias or value) for value, alias in choices if value is not None)
    return None, ()


# --- what is left over ------------------------------------------------------------------------------------------------


def parts_left(tags: Tags, images: tuple[ImageConfig, ...]) -> tuple[tuple[NotServed, ...], tuple[str, ...]]:
    """What no prediction is made for, with the reason; and the tags that people fill in."""
    names = {image.image_name: image for image in reversed(images)}
    asked = {query.name for image in images for query in image.classes}
    controls = {control.name: control for image in images for control in image.controls}
    named = {tag.get("name"): str(tag) for tag in tags}
    used = {(control.labelled_by.name if control.labelled_by else "") for image in images for control in image.controls}
    used |= {control.name for image in images for control in image.controls}
    # Absent classes of a page would be of one page among several: nothing fills that tag in.
    absent = [image.absent_choices for image in images if image.value_list is None]
    areas = [absent, *((image.question_area, image.answer_area) for image in images)]
    used |= {area for of_image in areas for area in of_image if area}
    not_served: list[NotServed] = []
    by_people: list[str] = []
    for tag in tags:
        name = tag.get("name")
        if name is None and tag.targets and (tag.tag in _LABELLED or tag.tag in _SHAPES or tag.tag == "labels"):
            not_served.append(NotServed(str(tag), "it has no name, without which Label Studio keeps nothing of it"))
        if name is None or tag.tag in _NO_CONTROL:
            continue
        if tag.tag == "image":
            why = _why_no_image(names[name])
        elif not tag.targets or name in used:
            why = _why_clicks_only(controls.get(name), asked) if tag.tag == "keypointlabels" else ""
            if len(tag.targets) > 1 and (tag.tag in _LABELLED or tag.tag in _SHAPES):
                not_served.append(NotServed(str(tag), _no_tools(tag), is_predicted=True))
        elif not any(target in names for target in tag.targets):
            why = _why_elsewhere(tag, named)
        else:
            why = _why_no_control(tag)
            if not why:
                by_people.append(name)
        if why:
            not_served.append(NotServed(str(tag), why))
    return tuple(not_served), tuple(by_people)


def _why_no_image(image: ImageConfig) -> str:
    if not (image.value or image.value_list):
        return 'it has neither value="$..." nor valueList="$...", so that it shows nothing'
    if any(control.is_drawn for control in image.controls):
        return ""
    return (
        f'no control with labels draws on it; add toName="{image.image_name}" to one of BrushLabels, BitmaskLabels, '
        "PolygonLabels, RectangleLabels and EllipseLabels, if it is to be pre-labelled"
    )


def _no_tools(tag: Tag) -> str:
    """Measured in the editor of Label Studio 1.23: it shows the regions of such a control, and has no tool for it."""
    images = " and ".join(tag.targets)
    return (
        f"predictions are drawn on {images}, but Label Studio has no tool for a control with several images, so that "
        "people cannot draw with it; give each image a control of its own"
    )


def _why_clicks_only(control: Control | None, asked: set[str]) -> str:
    missed = sorted({label.value for label in control.labels} - asked) if control else []
    if not missed:
        return ""
    return (
        f"key points only take clicks, so its labels {', '.join(missed)} are not predicted; add them to BrushLabels, "
        "PolygonLabels or another control that draws areas, if they are to be"
    )


def _why_elsewhere(tag: Tag, named: Mapping[str | None, str]) -> str:
    if not (tag.tag.endswith("labels") or tag.tag in (*_SHAPES, *_LINES, "videorectangle")):
        return ""
    shown = next((named[target] for target in tag.targets if target in named), None)
    if shown is None:
        return f"there is no image {', '.join(map(repr, tag.targets))}, which its toName says; correct toName"
    return f"it labels {shown}; only images can be pre-labelled"


def _why_no_control(tag: Tag) -> str:
    if tag.tag in _LINES:
        return "lines have no area; PolygonLabels or BrushLabels with the same labels would be predicted"
    if tag.tag == "labels":
        return "no Brush, Bitmask, MagicWand, Polygon, Rectangle or Ellipse draws on its image; add one"
    if tag.tag in _LABELLED:
        return 'it has no <Label value="..."/>'
    if tag.tag in _SHAPES:
        if tag.inside("label"):
            return f"Label Studio does not show labels that stand inside it; write {_NAMES[tag.tag]}Labels instead"
        return f'there are no labels for its image: add <Labels name="labels" toName="{tag.targets[0]}">'
    if tag.tag == "taxonomy" and tag.get("apiUrl"):
        return "its choices come from another server (apiUrl), which is not read; write them into the configuration"
    if tag.tag == "taxonomy" and tag.is_on("labeling"):
        return 'Label Studio names regions of images by a Taxonomy only with perRegion="true", not with labeling="true"'
    if tag.tag in _BY_PEOPLE:
        return ""
    return "it is not known here"
