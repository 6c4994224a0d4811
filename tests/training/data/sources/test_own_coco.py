"""One's own annotations in COCO's format, as annotation programs export them and `lasagna annotate` writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lasagna.errors import ConfigError, DataError
from tests.training.data.sources import samples
from training.data.records import OTHER
from training.data.sources import find_source
from training.data.sources.own_coco import OwnCoco
from training.data.sources.unsplit import is_in_split

NAMES = [f"{i:02}.jpg" for i in range(30)]


def content(names: list[str]) -> dict[str, Any]:
    """Photos whose left half is of the second category, "sky-other"; nothing is of the first."""
    box = [0, 0, samples.SIZE[1] // 2, 0, samples.SIZE[1] // 2, samples.SIZE[0], 0, samples.SIZE[0]]
    images = [
        {"id": i, "file_name": name, "height": samples.SIZE[0], "width": samples.SIZE[1]}
        for i, name in enumerate(names)
    ]
    return {
        "images": images,
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "segmentation": [box], "iscrowd": 0} for i in range(len(names))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "sky-other"}],
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def check(source: OwnCoco, count: int) -> None:
    assert source.classes == ("cat", "sky-other"), "as in the file"
    assert len(source) == count
    for record in (source[i] for i in range(count)):
        assert record.image_path is not None
        assert record.image_path.is_file()
        assert record.classes == source.classes
        assert (record.read() == np.where(samples.ids(1, 0) == 1, 1, OTHER)).all()


LAYOUTS = {
    "CVAT": ("annotations/instances_default.json", "images/{}", "{}", "all"),
    "Roboflow": ("train/_annotations.coco.json", "train/{}", "{}", "train"),
    "Label Studio": ("result.json", "images/{}", "images/{}", "all"),
    "Label Studio, Windows": ("result.json", "images/{}", "images\\{}", "all"),
    "beside it": ("my export.json", "{}", "{}", "all"),
    "COCO's own": ("annotations/instances_train.json", "train/{}", "{}", "train"),
    "with folders": ("coco.json", "images/{}", "/home/other/photos/{}", "all"),
}


@pytest.mark.parametrize("program", LAYOUTS)
def test_exports_of_annotation_programs(program: str, tmp_path: Path) -> None:
    file, photos, named, split = LAYOUTS[program]
    for name in NAMES[:3]:
        samples.photo(tmp_path / photos.format(name))
    write(tmp_path / file, content([named.format(name) for name in NAMES[:3]]))
    check(OwnCoco(tmp_path, split), 3)
    located = find_source("mine", tmp_path.parent, path=tmp_path)
    assert located.reader == "coco"
    check(located.open(split), 3)  # type: ignore[arg-type]


def test_the_file_itself(tmp_path: Path) -> None:
    samples.photo(tmp_path / "a" / "images" / "x.jpg")
    write(tmp_path / "a" / "one.json", content(["x.jpg"]))
    write(tmp_path / "a" / "two.json", content(["x.jpg"]))
    with pytest.raises(DataError, match=r"looked for .*, or one of one\.json, two\.json, by its path"):
        OwnCoco(tmp_path / "a", "all")
    check(OwnCoco(tmp_path / "a" / "two.json", "all"), 1)
    assert find_source("mine", tmp_path, path=tmp_path / "a" / "two.json").reader == "coco"


def test_splits_of_a_file_of_all_photos(tmp_path: Path) -> None:
    for i, name in enumerate(NAMES):
        samples.photo(tmp_path / "images" / name, (samples.SIZE[0], samples.SIZE[1]))
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / name).read_bytes() + bytes([i]))
    write(tmp_path / "coco.json", content(NAMES))
    parts = {split: OwnCoco(tmp_path, split) for split in ("train", "val", "all")}
    names = {split: {part[i].image_id for i in range(len(part))} for split, part in parts.items()}
    assert names["train"] | names["val"] == names["all"]
    assert not names["train"] & names["val"]
    expected = {Path(name).stem for name in NAMES if is_in_split("val", tmp_path / "images" / name)}
    assert names["val"] == expected
    with pytest.raises(DataError, match="no split 'test'; a file of all photos has train, val, all"):
        OwnCoco(tmp_path, "test")


def test_a_file_of_one_split_is_not_parted(tmp_path: Path) -> None:
    samples.photo(tmp_path / "images" / "x.jpg")
    write(tmp_path / "train.json", content(["x.jpg"]))
    check(OwnCoco(tmp_path, "train"), 1)
    with pytest.raises(DataError, match="no split 'val'; there are train"):
        OwnCoco(tmp_path, "val")


def test_photos_of_an_output_of_annotate(tmp_path: Path) -> None:
    samples.photo(tmp_path / "photos" / "north" / "x.jpg")
    write(tmp_path / "out" / "coco.json", content(["north/x.jpg"]))
    write(tmp_path / "out" / "report.json", {"image_root": str(tmp_path / "photos")})
    check(OwnCoco(tmp_path / "out", "all"), 1)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "coco.json", content(["x.jpg"]))
    with pytest.raises(DataError, match=r"images/x\.jpg"):
        OwnCoco(tmp_path, "all")
    with pytest.raises(ConfigError, match=r"no Label Studio export with its label_config\.xml, and has no annotations"):
        find_source("mine", tmp_path, path=tmp_path / "nowhere")
