"""Label Studio labelling configurations: what to ask of each image of a task, and where the answers are drawn.

A configuration may show several images, each with controls of its own or with shared ones; pages (`valueList`,
`Repeater`); labels that stand in the task (`value="$labels"`); and shapes whose labels stand in a tag of their own
(`Brush` with `Labels`). `LabelConfig.of_task` says what that means for one task.

What always holds: a label is data, and is asked, answered and written under exactly that name, whatever it contains;
only white space around it is taken off. Tag and attribute names may be in any case. Each part is served, or is in
`LabelConfig.not_served` or `LabelConfig.by_people`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import defusedxml.ElementTree

from lasagna.errors import ConfigError, ImageError
from lasagna.labels.elements import ABSENT, Tags, image_configs, parts_left
from lasagna.labels.parts import Control, ImageConfig, Label, Labeller, NotServed, each_once
from lasagna.labels.task_data import (
    MISSING,
    UNDEFINED,
    depends_on_task,
    expand,
    fields_read,
    put_value,
    top_field,
    value_of,
    variables,
)
from lasagna.masks.segmentation import ClassQuery

__all__ = [
    "ABSENT",
    "Control",
    "ImageConfig",
    "Label",
    "LabelConfig",
    "Labeller",
    "NotServed",
    "TaskImage",
    "parse_label_config",
    "read_label_config",
    "read_text",
]


@dataclass(frozen=True)
class TaskImage:
    """One image that a task shows.

    Attributes:
        config: What is asked of it; of pages with their number (`item_index`).
        address: Where it is; "" where there is none.
        problem: Why there is no address.
        shared_with: Other images of the same tag that regions of it may belong to as well: Label Studio draws a region
            on every image of a list that `value` (not `valueList`) names, and does not say which it is meant for.
    """

    config: ImageConfig
    address: str
    problem: str = ""
    shared_with: int = 0


@dataclass(frozen=True)
class LabelConfig:
    """A labelling configuration as a query plan.

    Attributes:
        xml: As it was given.
        images: Its images as they stand in the configuration: names of repeated parts have their flag (`{{idx}}`), and
            labels of the task are missing. Those of one task: `of_task`.
        not_served: Parts that no prediction is made for, though one could be expected.
        by_people: Names of the tags that people fill in (`Choices`, `TextArea`, ...).
        fields: Fields of a task's data that are read.
        depends_on_task: Whether names or labels differ from task to task.
    """

    xml: str
    images: tuple[ImageConfig, ...]
    not_served: tuple[NotServed, ...] = ()
    by_people: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    depends_on_task: bool = False

    @property
    def classes(self) -> tuple[ClassQuery, ...]:
        """What is asked of any image, each once, by first appearance; without labels that stand in tasks."""
        return each_once(query for image in self.images for query in image.classes)

    @property
    def has_dynamic_labels(self) -> bool:
        return any(control.is_dynamic for image in self.images for control in image.controls)

    def data_read(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a task's data that a prediction depends on."""
        known = self._defined(data)
        return {name: known[name] for name in self.fields if name in known}

    def of_task(self, data: Mapping[str, Any]) -> tuple[TaskImage, ...]:
        """The images of a task in the order of the configuration, pages in theirs. One without an address has a
        `problem`; a `Repeater` over an empty list gives none."""
        known = self._defined(data)
        configs = self.images
        if self.depends_on_task:
            part = json.dumps(self.data_read(data), sort_keys=True, ensure_ascii=False)
            configs = _configs_of_task(self.xml, part)
        return tuple(image for config in configs for image in _pages(config, known))

    def shown(self, data: Mapping[str, Any]) -> tuple[TaskImage, ...]:
        """The images of a task that can be asked.

        Raises:
            ImageError: There is none; says why of each.
        """
        images = self.of_task(data)
        found = tuple(image for image in images if image.address)
        if not found:
            reasons = list(dict.fromkeys(image.problem for image in images))
            raise ImageError("; ".join(reasons) or f"the task has no pages: {_listed(self._repeated())} is no list")
        return found

    def make_data(self, address: str, labels: Sequence[ClassQuery] = ()) -> dict[str, Any]:
        """Data of a task that shows one image, at every place where the configuration shows one.

        Args:
            address: The image's.
            labels: Of the task, where the configuration takes labels from it.

        Raises:
            ConfigError: The configuration shows no image at such an address.
        """
        data: dict[str, Any] = {}
        root = expand(_parsed(self.xml), {name: [{}] for name in map(top_field, self._repeated())})
        for image in image_configs(Tags(root), with_dynamic=True):
            text = image.value_list or image.value
            if not variables(text):
                raise ConfigError(
                    f'<Image name="{image.image_name}"> always shows {text!r}; write a variable, such as value="$image"'
                )
            if not put_value(text, [address] if image.value_list is not None else address, data):
                raise ConfigError(
                    f'<Image name="{image.image_name}"> shows {text!r}, and {address!r} does not begin and end so; '
                    "choose the addresses with --image-url-prefix"
                )
            for control in image.controls:
                if control.variable:
                    entries = [{"value": q.name, **({"hint": q.reads_as} if q.reads_as else {})} for q in labels]
                    put_value(control.variable, entries, data)
        return data

    def _defined(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The data with what was uploaded before the project had a configuration under the name that it has now."""
        first = next((top_field(found) for image in self.images for found in variables(image.value)), "")
        return {**data, first: data[UNDEFINED]} if UNDEFINED in data and first and first not in data else data

    def _repeated(self) -> list[str]:
        root = _parsed(self.xml)
        texts = [tag.get("on") or "" for tag in Tags(root) if tag.tag == "repeater"]
        return [found for text in texts for found in variables(text)]


MOST_CHARACTERS, MOST_LEVELS = 2_000_000, 100
"""Of a labelling configuration; 2000 labels with hints have some 200 000 characters."""


def parse_label_config(xml: str) -> LabelConfig:
    """The query plan of a Label Studio labelling configuration.

    `KeyPointLabels` are kept as controls (smart clicks), but a class that only they name is not asked.

    Raises:
        ConfigError: Not XML, over a limit, or nothing that can be drawn; says what was found. Or the `Choices` "absent"
            holds only one choice.
    """
    if len(xml) > MOST_CHARACTERS:
        raise ConfigError(
            f"the labelling configuration has {len(xml)} characters, the limit is {MOST_CHARACTERS}; name fewer labels"
        )
    root = _parsed(xml)
    tags = Tags(root)
    images = image_configs(tags, with_dynamic=True)
    not_served, by_people = parts_left(tags, images)
    with_address = [image for image in images if image.value or image.value_list]
    served = tuple(image for image in with_address if any(control.is_drawn for control in image.controls))
    if not served:
        raise ConfigError(_nothing(tags, not_served))
    return LabelConfig(xml, served, not_served, by_people, tuple(fields_read(root)), depends_on_task(root))


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


def _parsed(xml: str) -> ElementTree.Element:
    try:
        root: ElementTree.Element = defusedxml.ElementTree.fromstring(xml.strip())
    except (ElementTree.ParseError, defusedxml.DefusedXmlException, ValueError) as error:
        raise ConfigError(
            f"the labelling configuration is not the XML of Label Studio ({error}); copy it from the project's "
            "Settings > Labeling Interface > Code"
        ) from error
    _check_depth(root)
    return root


def _check_depth(root: ElementTree.Element) -> None:
    """Raises ConfigError where elements are nested so deeply that looking below each would take for ever."""
    level = [root]
    for _ in range(MOST_LEVELS):
        level = [below for element in level for below in element]
        if not level:
            return
    raise ConfigError(f"the labelling configuration is nested deeper than {MOST_LEVELS} elements; flatten it")


@functools.lru_cache(maxsize=256)
def _configs_of_task(xml: str, data: str) -> tuple[ImageConfig, ...]:
    """The images with what a task repeats and its labels. Tasks of a project often have the same."""
    images = image_configs(Tags(expand(_parsed(xml), json.loads(data))))
    return tuple(image for image in images if image.value or image.value_list)


def _nothing(tags: Tags, not_served: tuple[NotServed, ...]) -> str:
    named = [str(tag) for tag in tags if tag.get("name")]
    found = f"found {', '.join(named[:12])}" if named else "no tag has a name"
    if not any(tag.tag == "image" for tag in tags):
        return (
            f'the labelling configuration shows no image ({found}): add <Image name="image" value="$image"/>; only '
            "image projects can be pre-labelled"
        )
    if reasons := "; ".join(map(str, not_served)):
        return f"nothing in the labelling configuration can be pre-labelled ({found}): {reasons}"
    image = next((tag.get("name") for tag in tags if tag.tag == "image" and tag.get("name")), "image")
    return (
        f"nothing in the labelling configuration draws on an image ({found}): add "
        f'<BrushLabels name="brush" toName="{image}"> with a <Label value="..."/> for each class'
    )


# --- images of a task -------------------------------------------------------------------------------------------------


def _pages(config: ImageConfig, data: Mapping[str, Any]) -> list[TaskImage]:
    if config.value_list is not None:
        listed = value_of(config.value_list, data)
        items = listed if isinstance(listed, list) and listed else [listed]
        pages = (replace(config, item_index=i, is_page=True, absent_choices=None) for i in range(len(items)))
        return [_one(page, config.value_list, item, data) for page, item in zip(pages, items, strict=True)]
    found = value_of(config.value, data)
    if isinstance(found, list) and found:
        return [replace(_one(config, config.value, found[0], data), shared_with=len(found) - 1)]
    return [_one(config, config.value, found, data)]


def _one(config: ImageConfig, text: str, value: Any, data: Mapping[str, Any]) -> TaskImage:
    names = variables(text)
    where = " and ".join(map(repr, names)) or repr(text)
    if value is MISSING or value == []:
        field = next((top_field(name) for name in names), "")
        if field not in data:
            fields = ", ".join(sorted(map(str, data))) or "none"
            problem = f"has no field {field!r}, where the labelling configuration expects the image; it has: {fields}"
        elif field in names:
            problem = f"has the field {field!r} with {str(data[field])[:80]!r}, which is no address of an image"
        else:
            problem = f"has a field {field!r} with nothing at {where}, where the configuration expects the image"
        return TaskImage(config, "", f"the task {problem}")
    address = _trimmed(value) if isinstance(value, str) else ""
    if not address or not address.isprintable():  # control characters and lone surrogates, which no address holds
        problem = f"the task's field {where} holds {str(value)[:80]!r}, which is no address of an image"
        return TaskImage(config, "", problem)
    if not config.classes:
        return TaskImage(config, "", f"the task lists no labels for the image {config.image_name!r}")
    return TaskImage(config, address)


def _trimmed(address: str) -> str:
    """An address without what a browser takes off: blanks and control characters around it, line breaks and tabs in it
    (URL Standard, 4.4). Lists from spreadsheets have them."""
    return address.strip("".join(map(chr, range(33)))).translate(dict.fromkeys(map(ord, "\t\n\r")))


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "the field"
