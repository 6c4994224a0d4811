"""Class lists: from the command line, from a file, and as a labelling configuration that is made for them.

A label is data. Whatever it contains (commas, quotes, `<SEG>`, other scripts), it is asked, answered and written under
exactly that name; the only thing taken off is white space around it.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from lasagna.errors import QueryError
from lasagna.labels.configuration import ABSENT, read_text
from lasagna.masks.palette import palette
from lasagna.masks.segmentation import ClassQuery, class_queries


def make_label_config(classes: Sequence[ClassQuery], *, image_name: str = "image", variable: str = "image") -> str:
    """A labelling configuration for these classes: one brush with a label each, and the `Choices` of absent classes.

    What the model reads instead of a name becomes the label's `hint`, so that `parse_label_config` finds it again.

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
    entries are skipped, and a label given twice is asked once.

    Raises:
        QueryError: There is no label, or a quote is not closed.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise QueryError(
            f"the labels {text!r} cannot be read ({error}); put a label that contains a comma or a quote in double "
            'quotes, and double the quotes inside: sky,"bag, purse","19"" rack"'
        ) from error
    return _unique(ClassQuery(label) for row in rows for label in _stripped(row))


def read_labels_file(path: str | Path) -> list[ClassQuery]:
    """The classes of a UTF-8 text file: one per line; blank lines and lines that start with # are skipped.

    `name = what the model reads` (the equals sign between spaces) gives the model other words than the name. A label
    given twice is asked once; commas and quotes have no meaning here.

    Raises:
        ConfigError: The file cannot be read.
        QueryError: It holds no label.
    """
    queries = []
    for line in _stripped(read_text(path).splitlines()):
        if not line.startswith("#"):
            name, equals, reads_as = (part.strip() for part in line.partition(" = "))
            queries.append(ClassQuery(name, reads_as) if equals and reads_as else ClassQuery(line))
    return _unique(queries)


def _stripped(texts: Iterable[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]


def _unique(queries: Iterable[ClassQuery]) -> list[ClassQuery]:
    """Each name once, at its first place. Names that differ only in case are different labels."""
    first: dict[str, ClassQuery] = {}
    for query in queries:
        first.setdefault(query.name, query)
    return class_queries(list(first.values()))
