"""What a labelling configuration takes from a task's data: values of variables, repeated parts, labels of the task.

What always holds: a text means what it means to Label Studio's editor (1.23, measured in a real one). `$photo.url` and
`$pages[0].url` follow a path; text before and after a variable stays; `Repeater` makes a copy of its content for each
item of a list and puts the item's number in place of `{{idx}}`; a tag with labels and `value="$labels"` gets the labels
that the task lists; a label `value="$first"` is shown as what the task has there, and stored as it is written. XML
elements are never changed in place.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

_VARIABLE = re.compile(r"\$[A-Za-z0-9_\[\].{}]+")
_STEP = re.compile(r"[^.\[\]]+")
UNDEFINED = "$undefined$"
"""The field of a task that was uploaded before its project had a configuration. Label Studio reads it as the field of
the configuration's first variable."""
TEMPLATE_NAME = "template-name"
"""Attribute of a copied element: its `name` before the number of the item was put in."""
MISSING: Any = object()
"""No such field, or nothing in it."""


def variables(text: str) -> list[str]:
    """The variables of an attribute's value, without the dollar signs."""
    found = [variable[1:] for variable in _VARIABLE.findall(text)]
    return [*([text[1:]] if _is_field(text) and text[1:] not in found else []), *found]


def top_field(variable: str) -> str:
    """The field of the task's data that a variable looks into: `pages` for `pages[0].url`."""
    found = _STEP.match(variable)
    return found.group() if found else variable


def value_of(text: str, data: Mapping[str, Any]) -> Any:
    """What an attribute's value stands for in a task.

    Args:
        text: `$image`, `$photo.url`, `https://host/$path`, or a text without a variable, which stands for itself.
        data: The task's data.

    Returns:
        Any JSON value where the text is one variable, else a text; `MISSING` where the data has no such field.
    """
    if _is_field(text) and text[1:] in data:  # also a field whose name has dots or other signs in it
        return _present(data[text[1:]])
    if _VARIABLE.fullmatch(text):
        return _present(_follow(text[1:], data))
    filled = []
    for variable in _VARIABLE.findall(text):
        found = _present(_follow(variable[1:], data))
        if not isinstance(found, str | int | float):
            return MISSING
        filled.append(str(found))
    values = iter(filled)
    return _VARIABLE.sub(lambda _: next(values), text)


def put_value(text: str, value: Any, data: dict[str, Any]) -> bool:
    """Makes `value_of(text, data)` this value: the inverse, for tasks that are written.

    Returns:
        False where that cannot be: the text has no variable or several, or there is text around the variable and the
        value does not begin and end so.
    """
    found = _VARIABLE.findall(text) or ([text] if _is_field(text) else [])
    if len(found) != 1:
        return False
    before, after = text.split(found[0], 1)
    if before or after:
        if not isinstance(value, str) or not (value.startswith(before) and value.endswith(after)):
            return False
        value = value[len(before) : len(value) - len(after)]
        if not value:
            return False
    first, *steps = _steps(found[0][1:])
    data[first] = _with(data.get(first), steps, value)
    return True


def _with(place: Any, steps: list[str], leaf: Any) -> Any:
    """A place in the data with a leaf some steps below it; what it held besides stays."""
    if not steps:
        return leaf
    step, *rest = steps
    if _is_index(step):
        items = list(place) if isinstance(place, list) else []
        items += [None] * (int(step) + 1 - len(items))
        items[int(step)] = _with(items[int(step)], rest, leaf)
        return items
    return {**(place if isinstance(place, Mapping) else {}), step: _with((place or {}).get(step), rest, leaf)}


def _is_field(text: str) -> bool:
    return len(text) > 1 and text.startswith("$") and "$" not in text[1:]


def _present(value: Any) -> Any:
    return MISSING if value is None or value is MISSING or value == "" else value


def _steps(variable: str) -> list[str]:
    return _STEP.findall(variable)


def _is_index(step: str) -> bool:
    return step.isdigit()


def _follow(variable: str, data: Any) -> Any:
    found = data
    for step in _steps(variable):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and _is_index(step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return MISSING
    return found


# --- parts of a configuration that depend on the task -----------------------------------------------------------------

_LABELS = {"taxonomy": "Choice", "choices": "Choice"}


def attributes(element: Element) -> dict[str, str]:
    """Attributes by their names in lower case, as the editor compares them."""
    return {name.lower(): value for name, value in element.attrib.items()}


def tag_of(element: Element) -> str:
    """The tag in lower case; "" of a comment or a processing instruction."""
    return element.tag.lower() if isinstance(element.tag, str) else ""


def dynamic_value(element: Element) -> str | None:
    """The variable, with its dollar sign, that a tag takes its labels from; None where it has none."""
    tag, value = tag_of(element), attributes(element).get("value", "").strip()
    holds_labels = tag in _LABELS or tag.endswith("labels")
    return value if holds_labels and attributes(element).get("toname") and variables(value) else None


def depends_on_task(root: Element) -> bool:
    """Whether the tags themselves, not only the addresses of images, differ from task to task."""
    return any(
        tag_of(element) == "repeater" or dynamic_value(element) or _shown_by_task(element) for element in root.iter()
    )


def fields_read(root: Element) -> list[str]:
    """The fields of a task's data that images, labels and repeated parts are taken from, by first appearance."""
    found: dict[str, None] = {}
    for element in root.iter():
        known = attributes(element)
        texts = [dynamic_value(element), _shown_by_task(element)]
        texts += [known.get("value"), known.get("valuelist")] if tag_of(element) == "image" else []
        texts += [known.get("on")] if tag_of(element) == "repeater" else []
        for text in texts:
            found |= dict.fromkeys(variables((text or "").strip()))
            found |= {top_field(variable): None for variable in variables((text or "").strip())}
    return list(found)


def expand(root: Element, data: Mapping[str, Any]) -> Element:
    """A configuration as the editor builds it for one task: repeated parts copied, labels of the task put in."""
    return next(_expanded(root, data))


def _expanded(element: Element, data: Mapping[str, Any]) -> Iterator[Element]:
    if tag_of(element) == "repeater":
        known = attributes(element)
        flag, items = known.get("indexflag") or "{{idx}}", value_of(known.get("on", "").strip(), data)
        for number in range(len(items) if isinstance(items, list) else 0):
            for child in element:
                yield from _expanded(_numbered(child, flag, number, known.get("mode") == "pagination"), data)
        return
    made = Element(element.tag, element.attrib)
    if (text := _shown_by_task(element)) and (shown := value_of(text, data)) is not MISSING:
        made.set("hint", str(shown))
    for child in element:
        made.extend(_expanded(child, data))
    if variable := dynamic_value(element):
        made.extend(_labels(value_of(variable, data), _LABELS.get(tag_of(element), "Label")))
    yield made


def _shown_by_task(element: Element) -> str | None:
    """The value of a label with a variable, in place of which the task's data is shown; None where it has none, or
    where an alias, a hint or `predicted_values` says what the label means."""
    known = attributes(element)
    value = known.get("value", "").strip() if tag_of(element) == "label" else ""
    is_explained = any(known.get(name) for name in ("alias", "hint", "predicted_values"))
    return value if value and not is_explained and variables(value) else None


def _numbered(element: Element, flag: str, number: int, is_paged: bool) -> Element:
    made = copy.deepcopy(element)
    for each in made.iter():
        name = attributes(each).get("name")
        if name and TEMPLATE_NAME not in each.attrib:
            each.set(TEMPLATE_NAME, name)
        if is_paged:
            each.set("paged", "true")
        for key, value in each.attrib.items():
            if key != TEMPLATE_NAME:
                each.set(key, value.replace(flag, str(number)))
    return made


def _labels(listed: Any, tag: str) -> Iterator[Element]:
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, Mapping):
            simple = {key: value for key, value in entry.items() if isinstance(value, str | int | float)}
            made = Element(tag, {str(key): str(value) for key, value in simple.items()})
            made.extend(_labels(entry.get("children"), tag))
            yield made
