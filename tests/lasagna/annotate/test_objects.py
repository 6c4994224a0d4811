"""`lasagna annotate --objects off|things|all` on a real photo of three bears on grass, with the shipped model."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna.commands.cli import main

from .made import read

PHOTO = "000000008401"
LABELS = ("bear", "grass", "tree", "sky")


@pytest.fixture(scope="module")
def written(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output folder of each choice."""
    folder = tmp_path_factory.mktemp("objects")
    (folder / "photos").mkdir()
    shutil.copy(shared_data / "animals" / "images" / f"{PHOTO}.jpg", folder / "photos")
    found = {}
    for choice in ("off", "things", "all"):
        found[choice] = folder / choice
        words = ["--labels", ",".join(LABELS), "--format", "label-studio,coco,instances", "--objects", choice]
        done = CliRunner().invoke(
            main, ["annotate", str(folder / "photos"), *words, "--device", "cpu", "--out", str(folder / choice)]
        )
        assert done.exit_code == 0, done.output
    return found


def in_coco(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Annotations of each class, and their pixels."""
    coco = read(folder / "coco.json")
    names = {one["id"]: one["name"] for one in coco["categories"]}
    count, area = Counter[str](), Counter[str]()
    for one in coco["annotations"]:
        count[names[one["category_id"]]] += 1
        area[names[one["category_id"]]] += one["area"]
    return count, area


def test_whose_objects_are_told_apart(written: dict[str, Path]) -> None:
    off, things, every = (in_coco(written[choice])[0] for choice in ("off", "things", "all"))
    assert set(off.values()) == {1}
    assert {"bear", "grass", "tree"} <= set(off)
    assert things["bear"] >= 2, "bears are things"
    assert (things["grass"], things["tree"]) == (1, 1), "grass and trees are stuff"
    assert every["bear"] == things["bear"]
    assert every["grass"] >= 2


def test_the_pixels_of_a_class_are_the_same(written: dict[str, Path]) -> None:
    assert len({tuple(sorted(in_coco(folder)[1].items())) for folder in written.values()}) == 1


def test_bears_that_are_told_apart_are_the_bears_of_the_annotation(written: dict[str, Path], shared_data: Path) -> None:
    """Each annotated bear is mostly in an object of its own."""
    with Image.open(shared_data / "animals" / "instances" / f"{PHOTO}.png") as png:
        bears = np.asarray(png)
    with Image.open(next((written["things"] / "instances").rglob("*.png"))) as png:
        numbers = np.asarray(png)
    best = [np.bincount(numbers[bears == bear]).argmax() for bear in np.unique(bears[bears > 0])]
    assert len(best) == 3
    assert 0 not in best
    assert len(set(best)) >= 2


def test_regions_for_label_studio(written: dict[str, Path]) -> None:
    for choice, folder in written.items():
        [task] = read(folder / "tasks.json")
        [prediction] = task["predictions"]
        drawn = Counter(one["value"]["brushlabels"][0] for one in prediction["result"] if one["type"] == "brushlabels")
        assert drawn == in_coco(folder)[0], choice
