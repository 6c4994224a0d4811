"""Tables of figures: Markdown text, and marked blocks of a document that a command replaces.

What always holds: a figure that is undefined is shown as a dash; a block is replaced as a whole or the document is left
as it was.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lasagna.errors import DataError

Cell = str | int | float | None


def figure(value: Cell, digits: int = 3) -> str:
    """A number with fixed digits, text as it is, None as a dash."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as the paper prints it: 0.42 is 42.0."""
    return figure(None if value is None else 100.0 * value, digits)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table; the first column to the left, figures to the right."""
    lines = [f"| {' | '.join(headings)} |", "|---" + "|--:" * (len(headings) - 1) + "|"]
    lines += [f"| {' | '.join(figure(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def replace_block(document: Path, name: str, text: str) -> None:
    """Puts text between `<!-- NAME -->` and `<!-- /NAME -->` of a document, in place of what is there.

    Raises:
        DataError: The document is missing, or does not have the two marks once each, in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before = document.read_text(encoding="utf-8") if document.is_file() else ""
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if before.count(begin) != 1 or before.count(end) != 1 or not pattern.search(before):
        raise DataError(f"{document} has no place for this table; it needs {begin} and {end}, once each, in this order")
    after = pattern.sub(lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", before)
    save_text(document, after)


def save_text(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
