"""COCO's instance and panoptic annotations, written as they are published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lasagna.errors import DataError
from tests.training.data.sources.samples import (
    SIZE,
    coco_box,
    coco_image,
    coco_json,
    coco_panoptic,
    ids,
    segment,
)
from training.data.records import OTHER, UNKNOWN
from training.data.sources import open_source
from training.data.sources.coco_json import plain_name

PERSON, DOG, WALL = 1, 18, 199


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_instances_of_one_category_are_one_layer(tmp_path: Path) -> None:
    coco_json(tmp_path, "instances", [coco_box(1, DOG, 0, 0, 3, 6), coco_box(2, DOG, 2, 0, 6, 2)])
    record = open_source("coco_instances", tmp_path, "train")[0]
    assert record.classes == ("person", "dog", "wall")
    np.testing.assert_array_equal(record.read(), np.where(box(0, 0, 3, 6) | box(2, 0, 6, 2), 1, OTHER)[None])


def test_overlapping_instances_lie_in_layers(tmp_path: Path) -> None:
    coco_json(tmp_path, "instances", [coco_box(1, PERSON, 0, 0, 4, 6), coco_box(2, DOG, 2, 2, 6, 4)])
    labels = open_source("coco_instances", tmp_path, "train")[0].read()
    assert labels.shape == (2, *SIZE)
    np.testing.assert_array_equal((labels == 0).any(0), box(0, 0, 4, 6))
    np.testing.assert_array_equal((labels == 1).any(0), box(2, 2, 6, 4))


def test_a_photo_without_annotations_has_certain_negatives(tmp_path: Path) -> None:
    coco_json(tmp_path, "instances", [coco_box(1, DOG, 0, 0, 3, 6)], [coco_image(9), coco_image(25)])
    source = open_source("coco_instances", tmp_path, "train")
    assert [source[i].image_id for i in range(2)] == ["000000000009", "000000000025"]
    assert source[1].classes == ("person", "dog", "wall")
    np.testing.assert_array_equal(source[1].read(), np.full((1, *SIZE), OTHER))


def test_a_crowd_beside_instances_of_its_category_is_void(tmp_path: Path) -> None:
    crowd = coco_box(3, PERSON, 0, 0, 8, 4, crowd=True)
    coco_json(tmp_path, "instances", [coco_box(1, PERSON, 0, 0, 2, 6), coco_box(2, DOG, 4, 0, 6, 6), crowd])
    record = open_source("coco_instances", tmp_path, "train")[0]
    expected = np.where(box(0, 0, 8, 4), UNKNOWN, OTHER)
    expected[box(0, 0, 2, 6)], expected[box(4, 0, 6, 6)] = 0, 1  # what is outlined in a crowd is known
    assert record.classes == ("person", "dog", "wall")
    np.testing.assert_array_equal(record.read(), expected[None])


def test_a_category_that_is_only_a_crowd_is_not_decided(tmp_path: Path) -> None:
    coco_json(tmp_path, "instances", [coco_box(1, DOG, 0, 0, 3, 6), coco_box(2, PERSON, 4, 0, 8, 3, crowd=True)])
    source = open_source("coco_instances", tmp_path, "train")
    record = source[0]
    assert source.classes == ("person", "dog", "wall")
    assert record.classes == ("dog", "wall")
    expected = np.where(box(0, 0, 3, 6), 0, np.where(box(4, 0, 8, 3), UNKNOWN, OTHER))
    np.testing.assert_array_equal(record.read(), expected[None])


def test_panoptic_crowds_are_void(tmp_path: Path) -> None:
    coco_panoptic(
        tmp_path, [segment(70000, PERSON, crowd=True), segment(258, WALL), segment(3, WALL)], ids(70000, 258, 3)
    )
    record = open_source("coco_panoptic", tmp_path, "train")[0]
    assert record.classes == ("dog", "wall")
    expected = ids(UNKNOWN, 1, 1)
    np.testing.assert_array_equal(record.read(), expected[None])


def test_a_panoptic_id_that_no_segment_has_is_an_error(tmp_path: Path) -> None:
    coco_panoptic(tmp_path, [segment(70000, PERSON)])
    with pytest.raises(DataError, match=r"000000000009\.png: the segment 258 is not in segments_info"):
        open_source("coco_panoptic", tmp_path, "train")[0].read()


def test_a_panoptic_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    coco_panoptic(tmp_path, values=np.full((6, 9), 258))
    with pytest.raises(DataError, match=r"RGB of the photo's 8 x 6, not \(6, 9, 3\)"):
        open_source("coco_panoptic", tmp_path, "train")[0].read()


@pytest.mark.parametrize("split", ["train", "train2017"])
def test_a_split_with_and_without_the_year(tmp_path: Path, split: str) -> None:
    coco_json(tmp_path, "instances", [])
    assert len(open_source("coco_instances", tmp_path, split)) == 1


def test_a_data_set_of_ones_own(tmp_path: Path) -> None:
    path = coco_json(tmp_path, "instances", [coco_box(1, DOG, 0, 0, 3, 6)])
    path.rename(path.with_name("instances_night.json"))
    (tmp_path / "coco" / "train2017").rename(tmp_path / "coco" / "night")
    assert len(open_source("coco_instances", tmp_path, "night")) == 1
    with pytest.raises(DataError, match="there are night"):
        open_source("coco_instances", tmp_path, "train")


def test_photos_of_one_name_in_several_folders(tmp_path: Path) -> None:
    images = [{**coco_image(number), "file_name": f"{folder}/1.jpg"} for number, folder in enumerate(("day", "night"))]
    coco_json(tmp_path, "instances", [], images)
    source = open_source("coco_instances", tmp_path, "train")
    assert [source[i].image_id for i in range(2)] == ["day/1", "night/1"]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BROKEN = {
    "no categories": {"categories": []},
    "an annotation without a photo": {"annotations": [{"id": 1, "category_id": 1}]},
    "a photo without a size": {"images": [{"id": 9, "file_name": "000000000009.jpg"}]},
    "text": {"images": "none"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    path = coco_json(tmp_path, "instances", [coco_box(1, DOG, 0, 0, 3, 6)])
    change(path, **BROKEN[case])
    with pytest.raises(DataError, match=r"instances_train2017\.json: not in COCO's instances format"):
        open_source("coco_instances", tmp_path, "train")


def test_a_broken_mask_names_file_and_photo(tmp_path: Path) -> None:
    instance = {**coco_box(1, DOG, 0, 0, 3, 6), "segmentation": {"counts": [1, 2], "size": list(SIZE)}}
    coco_json(tmp_path, "instances", [instance])
    with pytest.raises(DataError, match=r"instances_train2017\.json: photo 9: run lengths cover 3 pixels of 48"):
        open_source("coco_instances", tmp_path, "train")[0].read()


NAMES = {
    "wall-other-merged": "wall",
    "tree-merged": "tree",
    "mirror-stuff": "mirror",
    "wall-brick": "wall-brick",
    "window-blind": "window-blind",
    "teddy bear": "teddy bear",
}


@pytest.mark.parametrize("name", NAMES)
def test_plain_names(name: str) -> None:
    assert plain_name(name) == NAMES[name]
