"""`lasagna annotate --format yolo`: YOLO's loaders find every photo and its labels, and nothing of anybody else's."""

import os
import shutil
from pathlib import Path

import pytest
import supervision
import yaml

from lasagna.annotate.writers import link_target
from lasagna.formats.yolo import yolo_label_path

from .made import CLASSES, Run, picture
from .test_sources import archive, content

YOLO = ("--format", "yolo", "--threshold", "0.001")
DEEP = ["a.jpg", "deep/images/x/d.jpg", "images/b.png", "images/images/c.png", "images2/e.jpg", "my images/f.jpg",
        "train/images/cow.jpg"]  # fmt: skip


def as_a_loader(data_yaml: Path) -> dict[str, tuple[Path, Path]]:
    """Image and label file of each entry of a data set, as YOLO's loaders find them: the list's own folder stands for
    the "./" in it; the label file's path is the image's with the last folder `images` called `labels`, and .txt."""
    data = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    listed = data_yaml.parent / data["train"]
    found = {}
    for line in listed.read_text(encoding="utf-8").splitlines():
        image = line.replace("./", f"{listed.parent}/", 1)
        before, _, after = image.rpartition("/images/")
        label = f"{before}/labels/{after}"
        found[line.removeprefix("./images/")] = Path(image), Path(label.rpartition(".")[0] + ".txt")
    return found


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Photos in folders that are called `images`, one with labels of another set beside it."""
    photos = tmp_path / "photos"
    for i, name in enumerate(DEEP):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(photos / name)
    (photos / "train" / "labels").mkdir()
    (photos / "train" / "labels" / "cow.txt").write_text("3 0 0 0 1 1 1\n")
    return photos


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.jpg", "labels/a.txt"),
        ("n/a.b.jpg", "labels/n/a.b.txt"),
        ("train/images/cow.jpg", "images/train/labels/cow.txt"),
        ("images/b.png", "images/labels/b.txt"),
        ("images/images/c.png", "images/images/labels/c.txt"),
        ("images/x/images.jpg", "images/labels/x/images.txt"),
        ("Images/a.JPG", "labels/Images/a.txt"),
        ("images.jpg", "labels/images.txt"),
    ],
)
def test_where_labels_are_looked_for(image: str, label: str) -> None:
    assert yolo_label_path(image) == label


def test_folders_called_images(run: Run, deep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = content(deep)
    for photos in (deep / "train", deep):  # from one link for all to a link for each, and names that change
        result = run(photos, *YOLO)
        assert result.exit_code == 0, result.output
    assert content(deep) == before, "nothing is written among the photos"
    found = as_a_loader(out / "yolo" / "data.yaml")
    assert sorted(found) == DEEP
    for name, (image, label) in found.items():
        assert image.resolve() == (deep / name).resolve()
        assert label.read_text().strip(), "the random model finds every class at this threshold"
        assert label.resolve().is_relative_to(out.resolve()), "not the labels of another set"
    assert run(deep / "my images", *YOLO).exit_code == 0, "and back"
    assert (out / "yolo" / "images").is_symlink()
    assert sorted(str(p.relative_to(out / "yolo")) for p in (out / "yolo").rglob("*.txt")) == [
        "images.txt",
        "labels/f.txt",
    ]


def test_an_archive_with_folders_called_images(run: Run, deep: Path, tmp_path: Path) -> None:
    members = {name: data for name, data in content(deep).items() if not name.endswith(".txt")}
    assert run(archive("zip", tmp_path / "photos.zip", members), *YOLO).exit_code == 0
    found = as_a_loader(tmp_path / "out" / "yolo" / "data.yaml")
    assert all(label.exists() for _, label in found.values())
    for name, data in members.items():  # as the list says, the photos are put there by hand
        (found[name][0]).parent.mkdir(parents=True, exist_ok=True)
        (found[name][0]).write_bytes(data)
    again = run(deep, *YOLO)
    assert again.exit_code == 0, again.output
    assert all(image.is_file() and not image.is_symlink() for image, _ in found.values())


def test_supervision_reads_it(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run(folder, *YOLO).exit_code == 0
    yolo = tmp_path / "out" / "yolo"
    data = supervision.DetectionDataset.from_yolo(
        str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"), force_masks=True
    )
    assert data.classes == CLASSES
    assert sum(len(detections) for detections in data.annotations.values()) > 0


def test_the_output_moves_with_the_project(run: Run, folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    shutil.move(folder, project / "photos")
    assert run(project / "photos", *YOLO, out=project / "deep" / "out").exit_code == 0
    os.rename(project, tmp_path / "moved")
    found = as_a_loader(tmp_path / "moved" / "deep" / "out" / "yolo" / "data.yaml")
    assert all(image.is_file() and label.is_file() for image, label in found.values())


def test_links_through_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "disk" / "photos").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "project").symlink_to(tmp_path / "disk")
    for photos in (tmp_path / "disk" / "photos", tmp_path / "home" / "project" / "photos"):
        place = tmp_path / "home" / "project" / "out" / "yolo" / "images"
        assert link_target(place, photos) == "../../photos"
    assert link_target(Path("/one/out/yolo/images"), Path("/two/photos")) == "/two/photos"


def test_a_folder_where_the_link_has_to_be_is_said_at_the_start(run: Run, folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "out" / "yolo" / "images"
    images.mkdir(parents=True)
    (images / "mine.txt").write_text("mine")
    result = run(folder, *YOLO)
    assert result.exit_code == 2
    assert f"{images} is a folder that holds files of yours" in result.stderr
    assert "Annotating" not in result.stderr, "before anything is computed"
    (images / "mine.txt").unlink()
    for name, data in content(folder).items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(data)
    assert run(folder, *YOLO).exit_code == 0, "a set with its own photos"
    found = as_a_loader(tmp_path / "out" / "yolo" / "data.yaml")
    assert all(image.is_file() and label.is_file() for image, label in found.values())


def test_a_link_of_ones_own(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "yolo").mkdir(parents=True)
    (tmp_path / "out" / "yolo" / "images").symlink_to(folder)
    assert run(folder, *YOLO).exit_code == 0, "it leads where ours would"
    (tmp_path / "other").mkdir()
    (tmp_path / "out" / "yolo" / "images").unlink()
    (tmp_path / "out" / "yolo" / "images").symlink_to(tmp_path / "other")
    result = run(folder, *YOLO)
    assert result.exit_code == 1
    assert "yolo/images: " in result.stderr
