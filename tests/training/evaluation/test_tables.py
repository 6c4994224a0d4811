"""Tables as text, and the blocks of a document that they replace."""

from pathlib import Path

import pytest

from lasagna.errors import DataError
from training.evaluation.tables import figure, markdown_table, percent, replace_block


def test_cells() -> None:
    assert [figure(0.12345), figure(None), figure(7), figure("N/2"), percent(0.4204), percent(None)] == [
        "0.123",
        "–",
        "7",
        "N/2",
        "42.0",
        "–",
    ]
    assert markdown_table(["set", "mIoU"], [["a|b", 0.5]]) == "| set | mIoU |\n|---|--:|\n| a/b | 0.500 |"


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text("a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n")
    replace_block(path, "one", r"| \1 |")  # no group reference
    replace_block(path, "one", r"| \g<0> |")
    assert path.read_text() == "a\n<!-- one -->\n\n| \\g<0> |\n\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n"
    assert [file.name for file in tmp_path.iterdir()] == ["results.md"]


@pytest.mark.parametrize(
    "text",
    [None, "", "<!-- /one --> <!-- one -->", "<!-- one --> <!-- one --> <!-- /one -->", "<!-- one -->"],
    ids=["no file", "no marks", "wrong order", "twice", "no end"],
)
def test_a_document_without_the_place_is_left_alone(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "results.md"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match="<!-- one -->"):
        replace_block(path, "one", "table")
    assert not path.exists() or path.read_text() == text
