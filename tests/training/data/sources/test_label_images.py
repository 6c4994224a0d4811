"""Readers of label images: ids, names, folders, and files that are something else."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lasagna.errors import DataError
from tests.training.data.sources import samples
from training.data.records import OTHER, UNKNOWN
from training.data.sources import open_source
from training.data.sources.cocostuff import coco_stuff_labels
from training.data.sources.label_images import published_names, read_label_image

KNOWN = {
    "ade20k.txt": (150, {0: "wall", 12: "person", 89: "television receiver", 149: "flag"}),
    "cityscapes.txt": (19, {0: "road", 11: "person", 12: "rider", 18: "bicycle"}),
    "pascal_context_59.txt": (59, {0: "aeroplane", 19: "tvmonitor", 20: "bag", 58: "wood"}),
    "pascal_voc.txt": (20, {0: "aeroplane", 10: "diningtable", 14: "person", 19: "tvmonitor"}),
}


@pytest.mark.parametrize("file", KNOWN)
def test_published_names(file: str) -> None:
    count, known = KNOWN[file]
    names = published_names(file)
    assert (len(names), len(set(names))) == (count, count)
    assert {i: names[i] for i in known} == known


def test_coco_stuff_has_171_names_at_the_published_numbers() -> None:
    labels = coco_stuff_labels()
    assert set(range(1, 183)) - set(labels) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert len(set(labels.values())) == 171
    assert sum(number <= 90 for number in labels) == 80
    known = {1: "person", 90: "toothbrush", 92: "banner", 96: "building", 112: "door", 157: "sky", 171: "wall-brick"}
    assert {number: labels[number] for number in known} == known


ALL_IDS: dict[str, tuple[Callable[..., None], range | list[int], list[int]]] = {
    "ade20k": (samples.ade20k, range(151), [UNKNOWN, *range(150)]),
    "pascal_voc_20": (samples.pascal_voc, [*range(21), 255], [OTHER, *range(20), UNKNOWN]),
    "cocostuff": (
        samples.cocostuff,
        [*(number - 1 for number in coco_stuff_labels()), 255],
        [*range(171), UNKNOWN],
    ),
    "cityscapes": (
        samples.cityscapes,
        range(34),
        [*[-2] * 7, 0, 1, -2, -2, 2, 3, 4, -2, -2, -2, 5, -2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, -2, -2, 16, 17, 18],
    ),
}


@pytest.mark.parametrize("name", ALL_IDS)
def test_every_published_id(tmp_path: Path, name: str) -> None:
    write, ids, expected = ALL_IDS[name]
    values = np.zeros(200, np.int64)
    values[: len(ids)] = ids
    shape = (10, 20)
    write(tmp_path, values=values.reshape(shape))
    record = open_source(name, tmp_path, "train")[0]
    assert record.image_path is not None
    samples.photo(record.image_path, shape)
    assert record.read().ravel()[: len(ids)].tolist() == expected


def test_pascal_context_459_has_ids_beyond_a_byte(tmp_path: Path) -> None:
    values = np.arange(460).reshape(20, 23)
    samples.pascal_context(tmp_path, values)
    record = open_source("pascal_context_459", tmp_path, "train")[0]
    assert record.image_path is not None
    samples.photo(record.image_path, (20, 23))
    np.testing.assert_array_equal(record.read().ravel(), [UNKNOWN, *range(459)])
    assert record.classes[:2] == ("thing 1", "aeroplane")


def test_pascal_context_59_goes_by_name(tmp_path: Path) -> None:
    samples.pascal_context(tmp_path, samples.ids(2, 3))  # aeroplane, and a thing that is none of the 59
    source = open_source("pascal_context_59", tmp_path, "train")
    np.testing.assert_array_equal(np.unique(source[0].read()), [OTHER, 0])
    assert source.classes[0] == "aeroplane"
    assert {"potted plant", "tv monitor"} <= set(source.classes)


def test_pascal_context_with_names_in_words(tmp_path: Path) -> None:
    samples.pascal_context(tmp_path)
    labels = tmp_path / "pascal_context" / "labels.txt"
    labels.write_text(labels.read_text().replace("bedclothes", "bed clothes"))
    assert len(open_source("pascal_context_59", tmp_path, "train").classes) == 59
    labels.write_text(labels.read_text().replace("bed clothes", "blanket"))
    with pytest.raises(DataError, match=r"labels\.txt: has no bedclothes, of the 59"):
        open_source("pascal_context_59", tmp_path, "train")


@pytest.mark.parametrize("text", ["accordion\n", "", "0: nothing\n", "1:\n"])
def test_labels_of_pascal_context_that_are_something_else(tmp_path: Path, text: str) -> None:
    samples.pascal_context(tmp_path)
    (tmp_path / "pascal_context" / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=r"labels\.txt.*download it again"):
        open_source("pascal_context_459", tmp_path, "train")


def test_a_broken_matlab_file_is_named(tmp_path: Path) -> None:
    samples.pascal_context(tmp_path)
    path = tmp_path / "pascal_context" / "trainval" / "2008_000002.mat"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: no MATLAB file with a LabelMap"):
        open_source("pascal_context_459", tmp_path, "train")[0].read()


STRANGE_IDS = {
    "ade20k, all of 3000 objects": ("ade20k", samples.ade20k, [151]),
    "cityscapes, train ids": ("cityscapes", samples.cityscapes, [255]),
    "cocostuff, numbers of labels.txt": ("cocostuff", samples.cocostuff, [182]),
    "cocostuff, a number without photos": ("cocostuff", samples.cocostuff, [11]),
    "mapillary, more than its config": ("mapillary", lambda root, values: samples.mapillary(root, values=values), [5]),
    "pascal voc, context ids": ("pascal_voc_20", samples.pascal_voc, [21, 59]),
    "pascal context, more than labels.txt": ("pascal_context_459", samples.pascal_context, [460]),
}


@pytest.mark.parametrize("case", STRANGE_IDS)
def test_ids_of_another_data_set_are_an_error(tmp_path: Path, case: str) -> None:
    name, write, strange = STRANGE_IDS[case]
    values = samples.ids(1 if name == "mapillary" else 10, strange[0], strange[-1])
    write(tmp_path, values=values)
    record = open_source(name, tmp_path, "train")[0]
    with pytest.raises(DataError, match=rf"the ids {', '.join(map(str, strange))} are none of .* other ids"):
        record.read()


def test_a_coloured_mask_is_an_error(tmp_path: Path) -> None:
    samples.ade20k(tmp_path)
    path = next(tmp_path.rglob("*.png"))
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: .*one channel of ids, not an image of 3 channels"):
        open_source("ade20k", tmp_path, "train")[0].read()


def test_a_damaged_mask_is_an_error(tmp_path: Path) -> None:
    samples.ade20k(tmp_path)
    path = next(tmp_path.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: the mask cannot be read"):
        open_source("ade20k", tmp_path, "train")[0].read()


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    samples.ade20k(tmp_path, values=np.zeros((6, 9)))
    with pytest.raises(DataError, match=r"is 9 x 6, its photo 8 x 6"):
        open_source("ade20k", tmp_path, "train")[0].read()


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16])
def test_ids_of_any_depth(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0, 1], [1, 0]]) * (1 if dtype == np.bool_ else np.iinfo(dtype).max)
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "a.png"), values)


@pytest.mark.parametrize(
    "folder", ["cocostuff/train2017", "coco/stuffthingmaps_trainval2017/train2017", "coco/stuffthingmaps/train2017"]
)
def test_coco_stuff_in_the_folders_of_published_code(tmp_path: Path, folder: str) -> None:
    samples.cocostuff(tmp_path, folder)
    assert len(open_source("cocostuff", tmp_path, "train2017")) == 1


def test_coco_stuff_lists_the_folders_that_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        open_source("cocostuff", tmp_path, "val")
    for folder in ("cocostuff/val2017", "coco/stuffthingmaps_trainval2017/val2017"):
        assert str(tmp_path / folder) in str(error.value)


@pytest.mark.parametrize("split", ["val", "validation"])
def test_a_split_has_its_published_name_too(tmp_path: Path, split: str) -> None:
    samples.ade20k(tmp_path, "training")
    samples.ade20k(tmp_path, "validation")
    assert open_source("ade20k", tmp_path, split)[0].image_id == "ADE_valid_00000001"


def test_an_unknown_split_names_both_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ADE20K has no split 'test'; there are train \(or training\), val \(or"):
        open_source("ade20k", tmp_path, "test")


def test_photos_without_labels_are_missed(tmp_path: Path) -> None:
    samples.cityscapes(tmp_path)
    photo = tmp_path / "cityscapes" / "leftImg8bit" / "train" / "bonn" / "bonn_000001_000019_leftImg8bit.png"
    samples.photo(photo)
    with pytest.raises(DataError, match=r"bonn/bonn_000001_000019_gtFine_labelIds\.png"):
        open_source("cityscapes", tmp_path, "train")


@pytest.mark.parametrize("content", ["[]", '{"labels": [{"name": "a"}]}', "{", '{"labels": 3}'])
def test_a_broken_config_of_mapillary_is_named(tmp_path: Path, content: str) -> None:
    samples.mapillary(tmp_path)
    (tmp_path / "mapillary" / "config_v2.0.json").write_text(content)
    with pytest.raises(DataError, match=r"config_v2\.0\.json: not"):
        open_source("mapillary", tmp_path, "train")
