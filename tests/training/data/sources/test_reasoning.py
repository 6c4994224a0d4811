"""ReasonSeg, written as it is published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN
from training.data.sources.reasoning import ReasonSeg

WIDTH, HEIGHT = 20, 12


def shape(label: str, x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    """A rectangle as ReasonSeg's script fills it: the last row and column belong to it."""
    points = [[x0 + 0.4, y0 + 0.2], [x1 + 0.4, y0 + 0.2], [x1 + 0.4, y1 + 0.2], [x0 + 0.4, y1 + 0.2]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points, "group_id": None, "flags": {}}


def write(root: Path, split: str, name: str, shapes: list[Any], text: Any, **more: Any) -> Path:
    folder = root / split
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.jpg", **more)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"text": text, "is_sentence": True, "shapes": shapes}))
    return path


def explain(root: Path, *items: dict[str, str]) -> None:
    (root / "explanatory").mkdir(exist_ok=True)
    (root / "explanatory" / "train.json").write_text(json.dumps(items))


SHAPES = {
    "one target": ([shape("target", 2, 1, 8, 7)], {(4, 4): 0, (8, 7): 0, (9, 4): OTHER, (0, 0): OTHER}),
    "two targets": ([shape("target", 2, 1, 4, 3), shape("target2", 10, 5, 12, 9)], {(3, 2): 0, (11, 7): 0}),
    "void inside a target": ([shape("ignore", 4, 3, 6, 5), shape("target", 2, 1, 8, 7)], {(5, 4): UNKNOWN, (3, 2): 0}),
    "a target inside void": ([shape("target", 4, 3, 6, 5), shape("Ignore", 2, 1, 8, 7)], {(5, 4): 0, (3, 2): UNKNOWN}),
    "a shape that was given up": ([shape("flag", 0, 0, 19, 11), shape("target", 2, 1, 4, 3)], {(9, 9): OTHER}),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(tmp_path: Path, case: str) -> None:
    shapes, expected = SHAPES[case]
    write(tmp_path, "val", "1", shapes, ["where?"])
    labels = ReasonSeg(tmp_path, "val")[0].read()
    assert (labels.shape, labels.dtype) == ((1, HEIGHT, WIDTH), np.int16)
    assert {(x, y): labels[0, y, x] for x, y in expected} == expected


def test_texts_answers_and_order(tmp_path: Path) -> None:
    write(tmp_path, "train", "b", [shape("target", 2, 1, 8, 7)], ["who leads?", " who is in front? ", "who leads?"])
    write(tmp_path, "train", "a", [shape("target", 2, 1, 8, 7)], ["the lid"])
    explain(tmp_path, {"image": "b.jpg", "query": "who leads?", "outputs": "The man in red. "})
    source = ReasonSeg(tmp_path, "train")
    first, second = source[0], source[1]
    assert (len(source), source.classes, first.classes, first.turns) == (2, (), (), ())
    assert (first.image_id, first.texts, first.answer) == ("a", ("the lid",), None)
    assert (second.image_id, second.texts) == ("b", ("who leads?", "who is in front?"))
    assert second.answer == "The man in red."
    assert second.image_path == tmp_path / "train" / "b.jpg"


def test_phrases_and_sentences_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "val", "1", [shape("target", 2, 1, 8, 7)], ["where?"])
    path = write(tmp_path, "val", "2", [shape("target", 2, 1, 8, 7)], ["the lid"])
    path.write_text(path.read_text().replace("true", "false"))
    source = ReasonSeg(tmp_path, "val")
    assert [source.is_sentence(i) for i in range(2)] == [True, False]


def test_an_annotation_in_windows_code_page(tmp_path: Path) -> None:
    path = write(tmp_path, "val", "1", [shape("target", 2, 1, 8, 7)], ["?"])
    path.write_bytes(path.read_bytes().replace(b'"?"', '"the café’s door"'.encode("cp1252")))
    assert ReasonSeg(tmp_path, "val")[0].texts == ("the café’s door",)


def test_the_map_has_the_size_of_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path, "val", "1", [shape("target", 2, 14, 8, 17)], ["where?"], exif=exif)
    labels = ReasonSeg(tmp_path, "val")[0].read()
    assert (labels.shape, labels[0, 16, 4]) == ((1, WIDTH, HEIGHT), 0)


@pytest.mark.parametrize("missing", ["train/1.jpg", "train/1.json", "explanatory/train.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, "train", "1", [shape("target", 2, 1, 8, 7)], ["where?"])
    explain(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError) as error:
        ReasonSeg(tmp_path, "train")
    assert str(tmp_path / missing) in str(error.value)


def test_missing_folder_empty_folder_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looked for\n  .*/test$"):
        ReasonSeg(tmp_path, "test")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"no NAME\.jpg"):
        ReasonSeg(tmp_path, "test")
    with pytest.raises(DataError, match="there are train, val, test"):
        ReasonSeg(tmp_path, "testA")


@pytest.mark.parametrize("content", ["{", "[]", '{"text": "?", "is_sentence": 1, "shapes": []}', '{"text": ["?"]}'])
def test_a_broken_annotation_is_named(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, "val", "1", [], ["where?"])
    path.write_text(content)
    with pytest.raises(DataError, match=r"val/1\.json: .*download it again"):
        ReasonSeg(tmp_path, "val")


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    write(tmp_path, "val", "1", [{"label": "target", "points": [[0, 0], [1e12, 3], [4, 4]]}], ["where?"])
    record = ReasonSeg(tmp_path, "val")[0]
    with pytest.raises(DataError, match=r"val/1\.json: .*far outside"):
        record.read()
