"""Panoptic quality against torchmetrics', the rules for void and crowds, average precision, and the command."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lasagna import ClassQuery, Lasagna
from lasagna.errors import DataError
from lasagna.masks.objects import Objects
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.network.compat import ensure_torchvision
from training.commands.evaluate import evaluate
from training.data.sources.folder import Folder
from training.data.sources.instances import InstanceMaps
from training.evaluation.evaluate_objects import PARTS, TOLD, ObjectPictures, evaluate_objects
from training.evaluation.objects import ObjectScores, count_matches

ensure_torchvision()
from torchmetrics.functional.detection import panoptic_quality  # noqa: E402

SIZE = (24, 24)


def blocks(random: np.random.Generator, count: int) -> np.ndarray:
    """Numbers 1..n of boxes that cover one another, some of them moved a little from those of the same generator."""
    numbers = np.zeros(SIZE, np.int32)
    for i in range(1, count + 1):
        top, left = random.integers(0, 18, 2)
        height, width = random.integers(2, 9, 2)
        numbers[top : top + height, left : left + width] = i
    return np.unique(numbers, return_inverse=True)[1].reshape(SIZE) + (numbers.min() > 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(0, 2))
def test_panoptic_quality_is_that_of_torchmetrics(seed: int, count: int, moved: int) -> None:
    truth = blocks(np.random.default_rng(seed), count)
    pieces = np.roll(blocks(np.random.default_rng(seed), count), moved, axis=1)
    found = count_matches(truth, np.zeros(SIZE, np.bool_), pieces)
    pairs = [np.stack([numbers > 0, numbers], -1).astype(np.int64) for numbers in (pieces, truth)]
    if found.pq is None:
        assert count == 0
        return
    # Class 1 are the things, class 0 is stuff that fills the rest.
    theirs = panoptic_quality(
        *(torch.tensor(pair)[None] for pair in pairs),
        things={1},
        stuffs={0},
        return_per_class=True,
        return_sq_and_rq=True,
    )
    assert theirs.reshape(2, 3)[0].tolist() == pytest.approx([found.pq, found.sq or 0.0, found.rq])


def test_void_and_crowds_count_nowhere() -> None:
    truth = np.zeros(SIZE, np.int32)
    truth[2:10, 2:10] = 1
    void = np.zeros(SIZE, np.bool_)
    void[:, 12:] = True
    pieces = np.zeros(SIZE, np.int32)
    pieces[2:10, 2:16] = 1  # reaches into the void, which is not counted
    pieces[12:20, 14:20] = 2  # lies in the void: no mistake
    pieces[20:24, 0:6] = 3  # a mistake
    found = count_matches(truth, void, pieces)
    assert (found.matched, found.wrong, found.missed) == (1, 1, 0)
    assert found.iou == pytest.approx(64 / 80)


def test_average_precision() -> None:
    """A wrong piece with a higher score than the right one halves the precision; a crowd takes any number of pieces."""
    truth = np.zeros(SIZE, np.int32)
    truth[2:10, 2:10] = 1
    right, wrong = truth > 0, np.zeros(SIZE, np.bool_)
    wrong[14:20, 2:10] = True
    nothing = np.zeros(SIZE, np.bool_)
    for score, expected in ((0.3, 1.0), (0.9, 0.5)):
        scores = ObjectScores()
        scores.add(
            {
                "cat": (truth, nothing, Objects.of_masks([right, wrong], [0.6, score], SIZE)),
                "dog": (truth * 0, nothing, None),
            }
        )
        assert scores.ap50() == pytest.approx(expected)
        assert scores.as_dict()["pq"] == pytest.approx(1 / 1.5)
    crowd = ObjectScores()
    crowd.add({"cat": (truth, wrong, Objects.of_masks([right, wrong], [0.6, 0.9], SIZE))})
    assert crowd.ap50() == pytest.approx(1.0)
    assert ObjectScores().as_dict()["pq"] is None


# --- A data set -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two photos: two cats that touch and a crowd of dogs; nothing annotated as an object."""
    root = tmp_path / "pets"
    for folder in ("images", "masks", "instances"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(root / "images" / f"{name}.png")
    mask, numbers = np.zeros((32, 48), np.uint8), np.zeros((32, 48), np.uint16)
    mask[4:12, 4:20], numbers[4:12, 4:12], numbers[4:12, 12:20] = 1, 1, 2
    mask[20:30, 4:30] = 2
    mask[0:2] = 255
    Image.fromarray(mask).save(root / "masks" / "a.png")
    Image.fromarray(numbers).save(root / "instances" / "a.png")
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(root / "masks" / "b.png")
    Image.fromarray(np.zeros((32, 48), np.uint16)).save(root / "instances" / "b.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["ground", "cat", "dog"], "background_index": 0}))
    (root / "instances.json").write_text(json.dumps({"a": [1, 1], "b": []}))
    (root / "val.txt").write_text("a\nb\n")
    return root


class Told:
    """Answers cats as one mask whose objects are the two cats, and dogs that nobody annotated as objects."""

    def segment_batch(self, images: Any, queries: Any, **options: Any) -> list[Segmentation]:
        assert options["exclusive"]
        answers = []
        for image, asked in zip(images, queries, strict=True):
            assert asked == [ClassQuery("cat", objects=True), ClassQuery("dog", objects=False)]
            size = (image.height, image.width)
            left, right = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
            left[4:12, 4:12] = right[4:12, 12:20] = True
            objects = Objects.of_masks([left, right], [0.9, 0.8], size)
            answers.append(
                Segmentation(
                    size, (ClassAnswer("cat", 0.9, left | right, objects=objects), ClassAnswer("dog", 0.1, None))
                )
            )
        return answers


def test_the_ways_are_scored_on_the_same_answers(data: Path, tmp_path: Path) -> None:
    pictures = ObjectPictures(1)
    result = evaluate_objects(Told(), Folder(data, "val"), on_photo=pictures)
    ways = result.as_dict()["ways"]
    assert (result.images, result.things) == (2, ("cat",))
    told, parts = ways[TOLD], ways[PARTS]
    assert (told["matched"], told["wrong"], told["missed"]) == (2, 2, 0)  # nothing is annotated in the second photo
    assert (parts["matched"], parts["wrong"], parts["missed"]) == (0, 2, 2)
    assert told["ap50"] > parts["ap50"]
    pictures.write(tmp_path / "page.html", "Objects")
    page = (tmp_path / "page.html").read_text()
    assert "--columns: 3" in page  # side by side: annotation, connected parts, told apart
    assert "2 objects: cat" in page
    assert "connected parts, 1 objects" in page
    assert "told apart, 2 objects" in page
    assert page.count("<article") == 1


def test_a_page_without_photos_has_nothing_of_the_data(data: Path, tmp_path: Path) -> None:
    pages = {}
    for photos in (True, False):
        pictures = ObjectPictures(1, photos)
        evaluate_objects(Told(), Folder(data, "val"), on_photo=pictures)
        pictures.write(tmp_path / "page.html", "Objects")
        pages[photos] = (tmp_path / "page.html").read_text()
    with_photo, without = (re.findall(r"data:image/jpeg;base64,([^)]+)", pages[photos]) for photos in (True, False))
    assert "--columns: 2" in pages[False]
    assert "annotation" not in pages[False]
    assert "told apart, 2 objects" in pages[False]
    assert with_photo != without
    white = np.asarray(Image.open(io.BytesIO(base64.b64decode(without[0]))))
    assert (white == 255).all()


def test_a_map_that_does_not_fit_fails_alone(data: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(data / "instances" / "b.png")
    result = evaluate_objects(Told(), Folder(data, "val"))
    assert result.images == 1
    assert "a photo of 48 x 32 was expected" in result.failures["b"]


def test_sets_without_objects_are_refused(data: Path) -> None:
    (data / "instances.json").write_text('{"a": [7]}')
    with pytest.raises(DataError, match="indices of classes"):
        InstanceMaps(data)
    (data / "instances.json").unlink()
    with pytest.raises(DataError, match="does not tell objects apart"):
        InstanceMaps(data)


@pytest.mark.slow
def test_the_command(data: Path, tmp_path: Path) -> None:
    Lasagna.random(2).save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(data), "--objects", "--device", "cpu"]
    found = CliRunner().invoke(evaluate, [*arguments, "--pictures", str(tmp_path / "p.html"), "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert set(report["objects"]["ways"]) == {PARTS, TOLD}
    assert report["objects"]["images"] == 2
    assert (tmp_path / "p.html").exists()
    table = CliRunner().invoke(evaluate, arguments, env={"COLUMNS": "140"})
    assert "connected parts" in table.stdout
    assert "AP50" in table.stdout
    for options in (["--chunk-sizes", "N"], ["--no-photos"]):
        refused = CliRunner().invoke(evaluate, [*arguments, *options])
        assert refused.exit_code == 2
