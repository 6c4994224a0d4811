"""The folder layout: what is read, and folders that are something else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna.errors import DataError
from tests.training.data.sources import samples
from training.data.records import OTHER, UNKNOWN
from training.data.sources.folder import Folder


def write_classes(root: Path, content: Any) -> None:
    (root / "classes.json").write_text(content if isinstance(content, str) else json.dumps(content))


CLASSES = {
    "a background in the middle": (["sky", "soil", "cat"], 1, ("sky", "cat"), [0, OTHER, 1]),
    "no background": (["sky", "soil", "cat"], None, ("sky", "soil", "cat"), [0, 1, 2]),
}


@pytest.mark.parametrize("case", CLASSES)
def test_indices_count_the_classes_that_can_be_asked(tmp_path: Path, case: str) -> None:
    names, background, classes, expected = CLASSES[case]
    samples.folder(tmp_path, np.array([[0, 1, 2, 255]]))
    write_classes(tmp_path, {"classes": names, "background_index": background, "licence": "none"})
    dataset = Folder(tmp_path, "train")
    assert dataset.classes == classes
    assert dataset[0].read().tolist() == [[[*expected, UNKNOWN]]]


def test_an_index_beyond_the_classes_is_void(tmp_path: Path) -> None:
    samples.folder(tmp_path, np.array([[0, 1, 2, 3]]))
    assert Folder(tmp_path, "train")[0].read().tolist() == [[[OTHER, 0, 1, UNKNOWN]]]


def test_an_id_may_hold_spaces_and_folders(tmp_path: Path) -> None:
    for name in ("first photo", "night/é"):
        samples.photo(tmp_path / "images" / f"{name}.jpg")
        samples.grey(tmp_path / "masks" / f"{name}.png", samples.ids(0, 1))
    write_classes(tmp_path, {"classes": ["sky", "cat"], "background_index": None})
    (tmp_path / "val.txt").write_text("first photo\n\nnight/é\r\n", encoding="utf-8")
    assert [Folder(tmp_path, "val")[i].image_id for i in (0, 1)] == ["first photo", "night/é"]


BROKEN = {
    "not JSON": ("{", "not readable as JSON"),
    "a list": (["cat"], "it needs"),
    "no names": ({"classes": []}, "it needs"),
    "numbers": ({"classes": [1, 2]}, "it needs"),
    "an empty name": ({"classes": ["cat", " "]}, "it needs"),
    "a background that is no class": ({"classes": ["cat"], "background_index": 1}, "from 0 to 0, not 1"),
    "a background by name": ({"classes": ["cat"], "background_index": "cat"}, "from 0 to 0, not 'cat'"),
    "more classes than a byte holds": ({"classes": [f"c{i}" for i in range(255)]}, "255 classes; 8-bit masks hold 254"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_list_of_classes_is_named(tmp_path: Path, case: str) -> None:
    content, said = BROKEN[case]
    samples.folder(tmp_path)
    write_classes(tmp_path, content)
    with pytest.raises(DataError, match=rf"classes\.json: .*{said}"):
        Folder(tmp_path, "train")


def test_a_mask_of_16_bits_is_an_error(tmp_path: Path) -> None:
    samples.folder(tmp_path)
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"masks/a\.png: a mask is one 8-bit channel of class indices, not uint16"):
        Folder(tmp_path, "train")[0].read()


@pytest.mark.parametrize("missing", ["classes.json", "train.txt", "images/2.jpg"])
def test_an_incomplete_folder_is_named(squares: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(squares / "squares", tmp_path / "squares")
    (tmp_path / "squares" / missing).unlink()
    with pytest.raises(DataError, match=missing.split("/")[-1]):
        Folder(tmp_path / "squares", "train")
