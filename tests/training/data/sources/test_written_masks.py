"""What `lasagna annotate --format masks` writes, corrected by somebody, is a data set as it is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.commands.cli import main
from lasagna.errors import DataError
from training.data.records import OTHER, UNKNOWN
from training.data.sources import find_source
from training.data.sources.folder import Folder

CLASSES = ("sky", "road", "cat")
NAMES = [f"{'north/' * (i % 2)}{i:02}.{'JPG' if i % 3 else 'png'}" for i in range(20)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: photos, and masks of them from a tiny random model."""
    project = tmp_path_factory.mktemp("project")
    Lasagna.random(seed=1).save_pretrained(project / "tiny")
    for i, name in enumerate(NAMES):
        (project / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((48, 32)).save(project / "photos" / name)
    words = ["annotate", str(project / "photos"), "--labels", ",".join(CLASSES), "--out", str(project / "out")]
    result = CliRunner().invoke(
        main, [*words, "--format", "masks", "--model", str(project / "tiny"), "--device", "cpu", "--no-gallery"]
    )
    assert result.exit_code == 0, result.output
    return project


@pytest.fixture
def project(written: Path, tmp_path: Path) -> Path:
    """A copy of it, in another place."""
    shutil.copytree(written / "photos", tmp_path / "photos")
    shutil.copytree(written / "out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    report["image_root"] = str(tmp_path / "photos")
    (tmp_path / "out" / "report.json").write_text(json.dumps(report))
    return tmp_path


def correct(path: Path) -> None:
    indices = np.zeros((32, 48), np.uint8)
    indices[:, :16], indices[:, 16:32] = 3, 255
    Image.fromarray(indices).save(path)


def test_every_photo_with_its_mask(written: Path) -> None:
    data = Folder(written / "out", "all")
    assert data.classes == CLASSES
    assert [data[i].image_id for i in range(len(data))] == sorted(NAMES)
    for record in (data[i] for i in range(len(data))):
        assert record.image_path == written / "photos" / record.image_id
        with Image.open(written / "out" / "masks" / Path(record.image_id).with_suffix(".png")) as png:
            indices = np.asarray(png).astype(int)
        assert (record.read()[0] == np.where(indices == 0, OTHER, indices - 1)).all()


def test_train_and_val_part_the_photos_for_good(project: Path) -> None:
    train, val = ({Folder(project / "out", split)[i].image_id for i in range(len(Folder(project / "out", split)))}
                  for split in ("train", "val"))  # fmt: skip
    assert train | val == set(NAMES)
    assert not train & val
    assert val
    shutil.rmtree(project / "out" / ".results")
    again = Folder(project / "out", "val")
    assert {again[i].image_id for i in range(len(again))} == val, "it follows from the photos themselves"


def test_corrected_masks_alone(project: Path) -> None:
    with pytest.raises(DataError, match="no photo in split 'corrected', of 20"):
        Folder(project / "out", "corrected")
    correct(project / "out" / "masks" / "00.png")
    data = Folder(project / "out", "corrected")
    assert [data[i].image_id for i in range(len(data))] == ["00.png"]
    assert set(np.unique(data[0].read())) == {2, UNKNOWN, OTHER}


def test_lists_come_first(project: Path) -> None:
    (project / "out" / "train.txt").write_bytes("\ufeff00\nnorth/01.JPG\r\n".encode())
    data = Folder(project / "out", "train")
    assert [data[i].image_id for i in range(len(data))] == ["00.png", "north/01.JPG"]


def test_the_project_was_moved(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("moved")
    report = json.loads((project / "out" / "report.json").read_text())
    report["image_root"] = "/where/it/was/photos"
    (project / "out" / "report.json").write_text(json.dumps(report))
    for name in ("photos", "out"):
        os.rename(project / name, moved / name)
    assert len(Folder(moved / "out", "all")) == len(NAMES)
    os.rename(moved / "photos", moved / "out" / "images")
    assert Folder(moved / "out", "all")[0].image_path == moved / "out" / "images" / sorted(NAMES)[0]


def test_what_is_missing_or_wrong_is_named(project: Path) -> None:
    Image.fromarray(np.full((32, 48), 9, np.uint8)).save(project / "out" / "masks" / "00.png")  # looked at at once
    with pytest.raises(DataError, match="the value 9 stands for no class: the classes are 0 to 3, and 255 is void"):
        Folder(project / "out", "all")
    (project / "photos" / "00.png").unlink()
    with pytest.raises(DataError, match=r"1 files of split 'all' are missing, .*00\.png; the photos are looked"):
        Folder(project / "out", "all")
    with pytest.raises(DataError, match="no split 'test'; an output of lasagna annotate has train, val, all and"):
        Folder(project / "out", "test")
    (project / "out" / "report.json").unlink()
    with pytest.raises(DataError, match=r"report\.json is missing"):
        Folder(project / "out", "all")


def test_the_reader_is_found_by_itself(project: Path) -> None:
    located = find_source("mine", project, path=project / "out")
    assert located.reader == "folder"
    assert len(located.open("all")) == len(NAMES)
