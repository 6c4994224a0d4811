"""Class lists: from the command line, from a file, and as a labelling configuration that is made for them.

A label is data. Whatever it contains (commas, quotes, `<SEG>`, other scripts), it is asked, answered and written under
exactly that name; the only thing taken off is white space around it.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from lasagna.errors import QueryError
from lasagna.labels.configuration import ABSENT, read_text
from lasagna.masks.palette import palette
from lasagna.masks.segmentation import ClassQuery, class_queries


def make_label_config(classes: Sequence[ClassQuery], *, image_name: str = "image", variable: str = "image") -> str:
    """A labelling configuration for these classes: one brush with a label each, and the `Choices` of absent classes.

    What the model reads instead of a name becomes the label's `hint`, so that `parse_label_config` finds it again, and
    where a query says whether objects are told apart, so does the label.

    Raises:
        QueryError: A name holds a character that XML cannot.
    """
    for query in classes:
        _check_xml(query.name)
        _check_xml(query.text)
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=image_name, value=f"${variable}", zoom="true", zoomControl="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name="brush", toName=image_name)
    absent = ElementTree.SubElement(
        view, "Choices", name=ABSENT, toName=image_name, choice="multiple", layout="select", required="false"
    )
    colours = palette(len(classes))
    for query, (red, green, blue) in zip(classes, colours, strict=True):
        label = ElementTree.SubElement(brush, "Label", value=query.name, background=f"#{red:02x}{green:02x}{blue:02x}")
        if query.reads_as is not None:
            label.set("hint", query.reads_as)
        if query.objects is not None:
            label.set("objects", str(query.objects).lower())
        ElementTree.SubElement(absent, "Choice", value=query.name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _check_xml(text: str) -> None:
    """XML 1.0 has no control characters but tab and line ends, no surrogates and no U+FFFE and U+FFFF."""
    for character in text:
        code = ord(character)
        if (code < 0x20 and character not in "\t\n\r") or 0xD800 <= code <= 0xDFFF or code in (0xFFFE, 0xFFFF):
            raise QueryError(
                f"label {text!r} holds the character {character!r}, which Label Studio cannot store; remove it"
            )


def read_labels(text: str) -> list[ClassQuery]:
    """The classes of a comma-separated list, e.g. `sky, road, "bag, purse"`.

    As in CSV, a label that contains a comma or a quote is put in double quotes, and a quote inside is doubled. Blank
    entries are skipped, and a label given twice is asked once. `@FILE`, and the name of a text file that is there, are
    read as `read_labels_file` does.

    Raises:
        ConfigError: The file cannot be read.
        QueryError: There is no label, a quote is not closed, or the list is plainly separated by something else: it
            would be taken for one class. In double quotes anything is a label.
    """
    path = _file_meant(text.strip())
    if path is not None:
        return read_labels_file(path)
    _check_separators(text.strip())
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise QueryError(
            f"the labels {text!r} cannot be read ({error}); put a label that contains a comma or a quote in double "
            'quotes, and double the quotes inside: sky,"bag, purse","19"" rack"'
        ) from error
    return _unique(ClassQuery(label) for row in rows for label in _stripped(row))


_LIST_ENDINGS = (".txt", ".names", ".lst", ".list", ".labels", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml")
"""Endings of files that hold classes, as people keep them."""
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SEPARATORS = {";": ";", "|": "|", "\t": "tabs", "\u3001": "\u3001", "\uff0c": "\uff0c", "\uff1b": "\uff1b"}
"""What is taken for a comma, and how a message calls it."""


def _file_meant(text: str) -> Path | None:
    """The file of classes that a list's text names; None for a list of labels."""
    bare = text.removeprefix("@")
    if "," in text or "\n" in text or not bare or (bare == text and not bare.lower().endswith(_LIST_ENDINGS)):
        return None
    path = Path(bare).expanduser()
    if not path.is_file():
        raise QueryError(
            f"the labels {text!r} look like the name of a file, and there is none of this name (looked from "
            f"{Path.cwd()}); check the name, or put it in double quotes where it is a label: {_quoted(text)}"
        )
    if path.suffix.lower() in (".xml", ".json", ".yaml", ".yml"):
        raise QueryError(
            f"{path} is not a list of labels: a file of labels has one per line. A labelling configuration of Label "
            "Studio goes into --label-config"
        )
    return path


def _quoted(label: str) -> str:
    """A label as a shell and then CSV take it literally."""
    escaped = label.replace('"', '""')
    return f"'\"{escaped}\"'"


def _check_separators(text: str) -> None:
    """Raises QueryError for a list that is not separated by commas, though it is plainly meant to be one."""
    bare = _QUOTED.sub("", text)
    parts: list[str] = []
    what = ""
    if text.startswith("[") and text.endswith("]"):
        what, parts = "brackets", [part.strip().strip("\"'") for part in text[1:-1].split(",")]
    elif found := next((character for character in _SEPARATORS if character in bare), None):
        what, parts = _SEPARATORS[found], re.split(f"[{re.escape(found)},]", text)
    elif "," not in bare and re.search(r"\.\s+\S|\s\.(\s|$)", bare):
        what, parts = "full stops", re.split(r"\.(?:\s+|$)", text)
    if what:
        meant = ",".join(part.strip() for part in parts if part.strip())
        raise QueryError(
            f"the labels {text!r} are not separated by commas but by {what}, and would be asked as one class; write "
            f"{meant!r}. Where it is one label, put it in double quotes: {_quoted(text)}"
        )


def read_labels_file(path: str | Path) -> list[ClassQuery]:
    """The classes of a UTF-8 text file: one per line; blank lines and lines that start with # are skipped.

    `name = what the model reads` (the equals sign between spaces) gives the model other words than the name. A label
    given twice is asked once; commas and quotes have no meaning here.

    Raises:
        ConfigError: The file cannot be read.
        QueryError: It holds no label, or all of them on one line.
    """
    queries = []
    lines = [line for line in _stripped(read_text(path).splitlines()) if not line.startswith("#")]
    if len(lines) == 1 and re.search("[,;|\t]", lines[0]):
        raise QueryError(
            f"{path} has its labels on one line, and would be asked as one class: {lines[0]!r}. Write one per line, or "
            "give them as --labels, separated by commas"
        )
    for line in lines:
        name, equals, reads_as = (part.strip() for part in line.partition(" = "))
        queries.append(ClassQuery(name, reads_as) if equals and reads_as else ClassQuery(line))
    return _unique(queries)


def describe_classes(queries: Sequence[ClassQuery], most: int = 20) -> str:
    """The class list in one line, for people: how many, and the first of them."""
    names = [query.name if query.reads_as is None else f"{query.name} (read as {query.reads_as})" for query in queries]
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} class{'es' * (len(names) > 1)}: {', '.join(names[:most])}{more}"


def _stripped(texts: Iterable[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _unique(queries: Iterable[ClassQuery]) -> list[ClassQuery]:
    """Each name once, at its first place. Names that differ only in case are different labels."""
    first: dict[str, ClassQuery] = {}
    for query in queries:
        first.setdefault(query.name, query)
    return class_queries(list(first.values()))
