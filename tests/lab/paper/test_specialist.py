"""The specialist learns what can be seen, resumes exactly, and answers class lists as the model does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from lab.paper.specialist import Specialist, SpecialistOptions, train_specialist
from lasagna.commands.cli import main
from lasagna.errors import CheckpointError, QueryError
from training.data.sources.folder import Folder
from training.evaluation.evaluate import evaluate_dataset
from training.examples.photos import Photos
from training.recipe.values import Optimiser


def small(steps: int, learning_rate: float = 6e-4) -> SpecialistOptions:
    optimiser = Optimiser(
        steps=steps,
        batch_size=2,
        micro_batch=2,
        learning_rate=learning_rate,
        backbone_rate=0.1,
        warmup=5,
        ema=0.8,
        precision="float32",
        save_every=10,
    )
    return SpecialistOptions(optimiser, width=16, image_size=64, view=(64, 64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, dark above and light below: sky, sea, and a strip of unasked background; void on the right edge."""
    root = tmp_path_factory.mktemp("sets") / "coast"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["land", "sky", "sea"], "background_index": 0}))
    names = [f"p{i}" for i in range(6)]
    (root / "train.txt").write_text("\n".join(names[:4]))
    (root / "val.txt").write_text("\n".join(names[4:]))
    for i, name in enumerate(names):
        image, mask = np.full((64, 96, 3), 10, np.uint8), np.ones((64, 96), np.uint8)
        image[20 + 3 * i :], mask[20 + 3 * i :] = (250, 240, 40), 2
        image[56:], mask[56:] = (120, 10, 10), 0
        mask[:, 90:] = 255
        Image.fromarray(image).save(root / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("specialist")
    options = small(60, learning_rate=3e-3)
    lines = list(train_specialist(Photos(Folder(data, "train"), "shore", 256), options, output))
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    return output


@pytest.mark.slow
def test_it_learns_and_is_scored_as_the_model_is(data: Path, trained: Path) -> None:
    report = evaluate_dataset(Specialist.load(trained), Folder(data, "val")).as_dict()
    assert report["miou"] > 0.6
    assert report["pixel_accuracy"] > 0.7  # background counts, and is a class of the softmax
    assert report["presence"]["f1"] == 1.0


def test_answers_are_of_the_image_and_in_query_order(data: Path, trained: Path) -> None:
    specialist = Specialist.load(trained)
    image = Image.open(data / "images" / "p0.jpg")
    (answer,) = specialist.segment_batch([image], [["sea", "sky"]], exclusive=True)
    assert answer.size == (64, 96)
    assert [found.name for found in answer.classes] == ["sea", "sky"]
    sea, sky = (found.mask for found in answer.classes)
    assert not (sea & sky).any()
    assert not (sea | sky).all()  # the background took the rest
    (strict,) = specialist.segment_batch([image], [["sea"]], threshold=0.9999999)
    assert strict.absent
    with pytest.raises(QueryError, match="zebra"):
        specialist.segment_batch([image], [["sea", "zebra"]])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    photos = Photos(Folder(data, "train"), "shore", 256)
    options = small(12)
    list(train_specialist(photos, options, tmp_path / "straight"))
    killed = train_specialist(photos, options, tmp_path / "killed")
    assert next(killed)["step"] == 10
    killed.close()
    with pytest.raises(CheckpointError, match=r"specialist\.pt"):
        Specialist.load(tmp_path / "killed")
    assert [line["step"] for line in train_specialist(photos, options, tmp_path / "killed")] == [12]
    straight, resumed = (Specialist.load(tmp_path / name).model.state_dict() for name in ("straight", "killed"))
    for key, value in straight.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=0)
    other = small(13)
    with pytest.raises(CheckpointError, match="other options"):
        next(train_specialist(photos, other, tmp_path / "killed"))


@pytest.mark.slow
def test_the_command_scores_it_beside_a_checkpoint(data: Path, tmp_path: Path, random_checkpoint: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("# Results\n\n<!-- specialist -->\nold\n<!-- /specialist -->\nend\n")
    arguments = ["--data", data, "--out", tmp_path / "runs", "--steps", 2, "--batch-size", 2, "--width", 16]
    arguments += ["--image-size", 64, "--view", 64, "--holdout", 0, "--against", random_checkpoint]
    arguments += ["--document", document, "--json"]
    result = CliRunner().invoke(main, ["experiment", "specialist", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    row = report["sets"]["coast"]
    assert row["specialist"]["images"] == row["model"]["images"] == 2
    assert report["environment"]["torch"] == torch.__version__
    assert report["options"]["optimiser"]["steps"] == 2
    text = document.read_text()
    assert "old" not in text
    assert text.endswith("end\n")
    assert "| coast | " in text
    assert report["model_version"] in text
