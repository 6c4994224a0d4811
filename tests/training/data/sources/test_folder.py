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


@pytest.mark.parametrize(
    ("values", "said"), [([0, 1, 3, 7], "values 3, 7 stand for"), ([0, 128], "value 128 stands for")]
)
def test_an_index_beyond_the_classes_is_an_error(values: list[int], said: str, tmp_path: Path) -> None:
    samples.folder(tmp_path, np.array([values]))
    with pytest.raises(
        DataError, match=rf"masks/\w+\.png: the {said} no class: the classes are 0 to 2, and 255 is void"
    ):
        Folder(tmp_path, "train")


def many(root: Path, masks: list[np.ndarray], classes: list[str], background: int | None = 0) -> Path:
    """A data set of these masks, called 00, 01, ..."""
    root.mkdir(exist_ok=True)
    write_classes(root, {"classes": classes, "background_index": background})
    for i, mask in enumerate(masks):
        samples.photo(root / "images" / f"{i:02}.jpg")
        samples.grey(root / "masks" / f"{i:02}.png", mask)
    (root / "train.txt").write_text("".join(f"{i:02}\n" for i in range(len(masks))))
    return root


def test_an_index_beyond_the_classes_in_a_mask_that_is_not_looked_at_first(tmp_path: Path) -> None:
    masks = [samples.ids(0, 1)] * 40
    masks[1] = samples.ids(0, 9)
    folder = Folder(many(tmp_path, masks, ["background", "cow"]), "train")
    with pytest.raises(DataError, match=r"01\.png: the value 9 stands for no class"):
        folder[1].read()
    assert folder[0].read().shape[0] == 1


@pytest.mark.parametrize("classes", [["background", "cow"], ["cow"]])
def test_black_and_white_masks_are_an_error(classes: list[str], tmp_path: Path) -> None:
    masks = [samples.ids(0, 255), samples.ids(0, 0), *[samples.ids(0, 255)] * 30]
    with pytest.raises(DataError, match=rf"all 32 masks are black and white .* instead, {len(classes) - 1} for 'cow'"):
        Folder(many(tmp_path, masks, classes, 0 if len(classes) > 1 else None), "train")


def test_one_mask_with_a_class_is_enough(tmp_path: Path) -> None:
    masks = [samples.ids(0, 255)] * 40
    masks[7] = samples.ids(0, 1)  # not one of those that are looked at first
    assert len(Folder(many(tmp_path, masks, ["background", "cow"]), "train")) == 40
    nothing = many(tmp_path / "none", [samples.ids(0, 0)] * 3, ["background", "cow"])
    assert len(Folder(nothing, "train")) == 3, "photos without any of the classes"


def test_a_mask_of_one_bit(tmp_path: Path) -> None:
    many(tmp_path, [samples.ids(0, 1)], ["background", "cow"])
    Image.fromarray(samples.ids(0, 1).astype(bool)).save(tmp_path / "masks" / "00.png")
    assert set(np.unique(Folder(tmp_path, "train")[0].read())) == {OTHER, 0}


def test_photos_of_any_ending(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.png", "n/c.JPEG", "d.webp", "e.jpg"):
        samples.photo(tmp_path / "images" / name)
        samples.grey(
            tmp_path / "masks" / Path(name).with_suffix(".PNG" if name == "a.JPG" else ".png"), samples.ids(0, 1)
        )
    write_classes(tmp_path, {"classes": ["sky", "cat"], "background_index": None})
    (tmp_path / "val.txt").write_bytes("\ufeffa\r\nb\r\nn/c\r\nd.webp\r\ne.jpg\r\n".encode())
    found = Folder(tmp_path, "val")
    paths = [str(found[i].image_path).removeprefix(f"{tmp_path}/images/") for i in range(5)]
    assert paths == ["a.JPG", "b.png", "n/c.JPEG", "d.webp", "e.jpg"]
    assert all(found[i].read().max() == 1 for i in range(5))
    (tmp_path / "val.txt").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        Folder(tmp_path, "val")


def test_two_photos_of_one_id(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        samples.photo(tmp_path / "images" / name)
        samples.grey(tmp_path / "masks" / f"{name}.png", samples.ids(0, 1))
    write_classes(tmp_path, {"classes": ["sky", "cat"]})
    (tmp_path / "val.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"the photo of 'a' could be any of .*a\.jpg, .*a\.png; write the ending"):
        Folder(tmp_path, "val")
    (tmp_path / "val.txt").write_text("a.jpg\na.png\n")
    assert [Folder(tmp_path, "val")[i].image_id for i in (0, 1)] == ["a.jpg", "a.png"]


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
