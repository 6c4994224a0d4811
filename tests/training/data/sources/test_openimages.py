"""Open Images V6, written as it is published."""

from pathlib import Path

import numpy as np
import pytest

from lasagna.errors import DataError
from tests.training.data.sources.samples import MASKS_HEADER, SIZE, openimages
from training.data.records import OTHER
from training.data.sources import open_source


@pytest.mark.parametrize("header", [False, True], ids=["as in V6", "with a header, as since V7"])
def test_masks_and_verified_absence(tmp_path: Path, header: bool) -> None:
    openimages(tmp_path, header)
    source = open_source("openimages", tmp_path, "train")
    assert source.classes == ("person", "dog", "tie", "suit", "tree")
    record = source[0]
    # The dog was found present, without a mask, and the tree was not asked about: neither is known.
    assert record.classes == ("person", "tie", "suit")
    labels = record.read()
    columns = np.arange(SIZE[1])
    # In the file the suit's mask comes first. The tie's mask has twice the photo's size.
    np.testing.assert_array_equal((labels == 1).any(0), np.broadcast_to((columns >= 2) & (columns < 4), SIZE))
    np.testing.assert_array_equal((labels == 2).any(0), np.broadcast_to(columns < 6, SIZE))
    assert not (labels == 0).any()
    assert set(np.unique(labels)) == {OTHER, 1, 2}


def test_without_image_level_labels_only_what_has_a_mask_is_known(tmp_path: Path) -> None:
    openimages(tmp_path)
    (tmp_path / "OpenImageV6" / "train-annotations-human-imagelabels-boxable.csv").unlink()
    assert open_source("openimages", tmp_path, "train")[0].classes == ("tie", "suit")


def test_files_sorted_into_folders(tmp_path: Path) -> None:
    openimages(tmp_path)
    folder = tmp_path / "OpenImageV6"
    (folder / "folder_train").mkdir()
    (folder / "train").rename(folder / "folder_train" / "d0")
    (folder / "annotations").mkdir()
    for path in [*folder.glob("*.csv"), *folder.glob("*.txt")]:
        path.rename(folder / "annotations" / path.name)
    (folder / "train-masks" / "d").mkdir()
    for path in list((folder / "train-masks").glob("*.png")):
        path.rename(path.parent / "d" / path.name)
    record = open_source("openimages", tmp_path, "train")[0]
    assert record.read().shape == (2, *SIZE)
    assert record.image_path == folder / "folder_train" / "d0" / "d0ed76e0533a914d.jpg"


BROKEN = {
    "another header": (MASKS_HEADER.replace("MaskPath", "Mask"), "has no column MaskPath, but Mask, ImageID"),
    "nothing": ("", "has no column MaskPath, ImageID, LabelName"),
    "a line cut short": (f"{MASKS_HEADER}\na.png,d0ed", "line 2: 3 columns are expected"),
    "a class of another version": (f"{MASKS_HEADER}\na.png,d0ed,/m/none,1,0,1,0,1,1,", "/m/none is not in classes-"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_list_is_named(tmp_path: Path, case: str) -> None:
    openimages(tmp_path)
    content, said = BROKEN[case]
    (tmp_path / "OpenImageV6" / "train-annotations-object-segmentation.csv").write_text(content)
    with pytest.raises(DataError, match=rf"train-annotations-object-segmentation\.csv.*{said}"):
        open_source("openimages", tmp_path, "train")


def test_a_class_without_a_name_is_reported(tmp_path: Path) -> None:
    openimages(tmp_path)
    with (tmp_path / "OpenImageV6" / "classes-segmentation.txt").open("a") as file:
        file.write("/m/zzz\n")
    with pytest.raises(DataError, match=r"/m/zzz has no name in class-descriptions-boxable\.csv"):
        open_source("openimages", tmp_path, "train")
