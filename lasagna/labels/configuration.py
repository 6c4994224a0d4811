"""Label Studio labelling configurations: what to ask, and where the answers are drawn.

A label is data. Whatever it contains (commas, quotes, `<SEG>`, other scripts), it is asked, answered and written under
exactly that name; the only thing taken off is white space around it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree

from lasagna.errors import ConfigError
from lasagna.masks.segmentation import ClassQuery

_KINDS = {
    "brushlabels": "brush",
    "polygonlabels": "polygon",
    "rectanglelabels": "rectangle",
    "keypointlabels": "keypoint",
}
ABSENT, _ANSWER = "absent", "answer"


@dataclass(frozen=True)
class Label:
    """A `<Label>` of a control. `alias`, `hint`, `predicted_values` and `threshold` are its attributes."""

    value: str
    alias: str | None = None
    hint: str | None = None
    predicted_values: tuple[str, ...] = ()
    threshold: float | None = None

    @property
    def written(self) -> str:
        """What Label Studio writes into a region for this label, and accepts in one: the alias if there is one."""
        return self.alias or self.value

    @property
    def reads_as(self) -> str | None:
        """What the model reads: the alias, else the hint, else the first predicted value, else None (the label itself).

        In this order because an alias is another name for the class, a hint describes it to people, and predicted
        values name it in the vocabulary of some model.
        """
        return self.alias or self.hint or next(iter(self.predicted_values), None)


@dataclass(frozen=True)
class Control:
    """A control tag that draws on the image.

    Attributes:
        name: The tag's name: `from_name` of its regions.
        kind: "brush", "polygon", "rectangle" or "keypoint".
        to_name: Name of the image tag.
        labels: Its labels, each value once.
        smart: The tag offers a smart tool: a click or box of it is sent to the model.
    """

    name: str
    kind: str
    to_name: str
    labels: tuple[Label, ...]
    smart: bool = False

    def label(self, value: str) -> Label | None:
        """The label with this value, or None."""
        return next((label for label in self.labels if label.value == value), None)

    def label_written(self, written: str) -> Label | None:
        """The label that a region's text stands for (its alias or its value), or None."""
        return next((label for label in self.labels if written in (label.written, label.value)), None)


@dataclass(frozen=True)
class LabelConfig:
    """A labelling configuration as a query plan.

    Attributes:
        image_name: Name of the image tag: `to_name` of every region.
        image_variable: Key in a task's data that holds the image's address.
        controls: Every control that draws on that image, in order.
        classes: What to ask: the labels of the brush, polygon and rectangle controls, each once, by first appearance.
        absent_choices: Name of a `Choices` tag called "absent", which is to list the absent classes, or None.
        absent_values: Class name and what Label Studio writes for it, for each choice of that tag.
        question_area: Name of the first `TextArea` of that image with smart="true": what is written in it is asked.
        answer_area: Name of the `TextArea` called "answer", which takes answers in words.
    """

    image_name: str
    image_variable: str
    controls: tuple[Control, ...]
    classes: tuple[ClassQuery, ...]
    absent_choices: str | None = None
    absent_values: tuple[tuple[str, str], ...] = ()
    question_area: str | None = None
    answer_area: str | None = None

    def controls_for(self, class_name: str) -> list[tuple[Control, Label]]:
        """The controls in which the class is drawn, with its label there. Keypoint controls only take clicks."""
        found = [(control, control.label(class_name)) for control in self.controls if control.kind != "keypoint"]
        return [(control, label) for control, label in found if label is not None]


MOST_CHARACTERS, MOST_LEVELS = 2_000_000, 100
"""Of a labelling configuration; 2000 labels with hints have some 200 000 characters."""


def parse_label_config(xml: str) -> LabelConfig:
    """The query plan of a Label Studio labelling configuration.

    Uses the first `Image` tag that a `BrushLabels`, `PolygonLabels` or `RectangleLabels` with labels draws on. Tag and
    attribute names may be in any case, as in the editor. `KeyPointLabels` are kept as controls (smart clicks), but a
    class that only they name is not asked. Other tags are ignored.

    Raises:
        ConfigError: Not XML, over a limit, no image, or no usable control; or the `Choices` "absent" holds only one
            choice.
    """
    if len(xml) > MOST_CHARACTERS:
        raise ConfigError(
            f"the labelling configuration has {len(xml)} characters, the limit is {MOST_CHARACTERS}; name fewer labels"
        )
    try:
        root = defusedxml.ElementTree.fromstring(xml.strip())
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        raise ConfigError(
            f"the labelling configuration is not the XML of Label Studio ({error}); copy it from the project's "
            "Settings > Labeling Interface > Code"
        ) from error
    _check_depth(root)
    elements = [_Element(element) for element in root.iter() if isinstance(element.tag, str)]

    images = [element for element in elements if element.tag == "image" and element.get("name")]
    if not images:
        found = ", ".join(sorted({element.tag for element in elements if element.get("name")})) or "none"
        raise ConfigError(
            f'the labelling configuration has no <Image name="..." value="$..."/> tag (named tags found: {found}); '
            "only image projects can be pre-labelled"
        )
    drawing: dict[str, list[Control]] = {}
    for control in itertools.chain.from_iterable(map(_controls, elements)):
        drawing.setdefault(control.to_name, []).append(control)
    for image in images:
        controls = drawing.get(image.get("name") or "", [])
        if any(control.kind != "keypoint" for control in controls):
            return _plan(image, controls, elements)
    raise ConfigError(
        "the labelling configuration has no <BrushLabels>, <PolygonLabels> or <RectangleLabels> with labels for the "
        f"image {images[0].get('name')!r}; add one, with toName={images[0].get('name')!r} and at least one "
        '<Label value="..."/> inside (labels that come from each task cannot be used)'
    )


class _Element:
    """An XML element whose tag and attribute names are compared without case, as the editor does."""

    def __init__(self, element: Any) -> None:
        self.tag: str = element.tag.lower()
        self._attributes = {name.lower(): value for name, value in element.attrib.items()}
        self._element = element

    def get(self, name: str) -> str | None:
        """The attribute without surrounding white space; None where it is missing or blank."""
        return (self._attributes.get(name.lower()) or "").strip() or None

    def is_on(self, name: str) -> bool:
        return (self.get(name) or "").lower() == "true"

    def descendants(self, tag: str) -> "list[_Element]":
        inner = [_Element(element) for element in self._element.iter() if isinstance(element.tag, str)]
        return [element for element in inner if element.tag == tag]


def _controls(element: _Element) -> Iterator[Control]:
    """The control that an element is, for each image that it draws on; nothing of any other element."""
    kind, name = _KINDS.get(element.tag), element.get("name")
    if kind is None or name is None:
        return
    labels: dict[str, Label] = {}
    for tag in element.descendants("label"):
        value = tag.get("value")
        if value is not None and value not in labels:
            predicted = [text.strip() for text in (tag.get("predicted_values") or "").split(",")]
            texts = tuple(text for text in predicted if text)
            threshold = label_threshold(value, tag.get("threshold"))
            labels[value] = Label(value, tag.get("alias"), tag.get("hint"), texts, threshold)
    if not labels:
        return
    for target in dict.fromkeys(target.strip() for target in (element.get("toName") or "").split(",")):
        yield Control(name, kind, target, tuple(labels.values()), element.is_on("smart"))


def _check_depth(root: Any) -> None:
    """Raises ConfigError where elements are nested so deeply that looking below each would take for ever."""
    level = [root]
    for _ in range(MOST_LEVELS):
        level = [below for element in level for below in element]
        if not level:
            return
    raise ConfigError(f"the labelling configuration is nested deeper than {MOST_LEVELS} elements; flatten it")


def with_thresholds(config: LabelConfig, thresholds: Mapping[str, float]) -> LabelConfig:
    """The configuration with thresholds of labels in place of what it says itself; names that it has not are left."""
    classes = tuple(
        replace(query, threshold=thresholds[query.name]) if query.name in thresholds else query
        for query in config.classes
    )
    return replace(config, classes=classes)


def label_threshold(label: str, written: str | None) -> float | None:
    """The `threshold` of a `<Label>`; None without one. Raises ConfigError for what is no probability."""
    if written is None or not written.strip():
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


def _plan(image: _Element, controls: list[Control], elements: list[_Element]) -> LabelConfig:
    variable = image.get("value") or ""
    if not variable.startswith("$") or len(variable) < 2:
        raise ConfigError(
            f'<Image name="{image.get("name")}"> has value={variable!r}, which names no field of the tasks; '
            'expected value="$image" or another "$" and the name of the field'
        )
    classes: dict[str, ClassQuery] = {}
    for control in controls:
        for label in control.labels if control.kind != "keypoint" else ():
            known = classes.get(label.value)
            if known is None or known.reads_as is None:  # assigning to a known name keeps its place
                threshold = known.threshold if known is not None and label.threshold is None else label.threshold
                classes[label.value] = ClassQuery(label.value, label.reads_as, threshold)
    name, values = _absent_choices(image, elements)
    return LabelConfig(
        image_name=image.get("name") or "",
        image_variable=variable[1:],
        controls=tuple(controls),
        classes=tuple(classes.values()),
        absent_choices=name,
        absent_values=values,
        question_area=_text_area(image, elements, lambda area: area.is_on("smart")),
        answer_area=_text_area(image, elements, lambda area: area.get("name") == _ANSWER),
    )


def _text_area(image: _Element, elements: list[_Element], wanted: Callable[[_Element], bool]) -> str | None:
    areas = [e for e in elements if e.tag == "textarea" and e.get("toName") == image.get("name") and e.get("name")]
    return next((area.get("name") for area in areas if wanted(area)), None)


def _absent_choices(image: _Element, elements: list[_Element]) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    for element in elements:
        if element.tag == "choices" and element.get("name") == ABSENT and element.get("toName") == image.get("name"):
            if (element.get("choice") or "").lower() != "multiple":
                raise ConfigError(
                    '<Choices name="absent"> lists the classes that are absent from an image, so it must take several: '
                    'add choice="multiple"'
                )
            choices = [(tag.get("value"), tag.get("alias")) for tag in element.descendants("choice")]
            return ABSENT, tuple((value, alias or value) for value, alias in choices if value is not None)
    return None, ()


def read_label_config(path: str | Path) -> LabelConfig:
    """`parse_label_config` of a file. Raises ConfigError also where it cannot be read."""
    try:
        return parse_label_config(read_text(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8. Raises ConfigError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
