"""Calibration: the fit finds what made the answers, and the command stores it beside the checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.checkpoint import Calibration, load_calibration
from lasagna.cli import main
from lasagna.errors import DataError
from training.calibrate import Answers, collect_answers, fit_calibration
from training.data import FolderDataset
from training.metrics import expected_calibration_error

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "nano.yaml"


def answers(calibration: Calibration, count: int, seed: int) -> Answers:
    """Margins of any size, and truths drawn with the probabilities that the calibration gives them."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 4, count)
    probability = 1 / (1 + np.exp(-(margins - calibration.offset) / calibration.temperature))
    return Answers(margins, rng.random(count) < probability)


def test_the_fit_finds_the_temperature_and_offset_that_made_the_answers() -> None:
    truth = Calibration(temperature=2.5, offset=-1.5)
    found = fit_calibration([answers(truth, 20_000, seed=1)])
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.offset == pytest.approx(-1.5, abs=0.1)
    fresh = answers(truth, 20_000, seed=2)
    before = expected_calibration_error(fresh.present, fresh.probabilities(Calibration()))
    after = expected_calibration_error(fresh.present, fresh.probabilities(found))
    assert after < 0.02 < before


def test_a_large_set_counts_as_much_as_a_small_one() -> None:
    left, right = Calibration(offset=-2.0), Calibration(offset=2.0)
    found = fit_calibration([answers(left, 40_000, seed=1), answers(right, 4_000, seed=2)])
    assert found.offset == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        pytest.param([], "0 present ones of 0", id="none"),
        pytest.param([Answers(np.zeros(3), np.ones(3, bool))], "3 present ones of 3", id="nothing-absent"),
        pytest.param([Answers(np.array([-1.0, 1.0, 2.0]), np.array([1, 0, 0], bool))], "not more often", id="reversed"),
    ],
)
def test_what_cannot_be_calibrated_is_named(sets: list[Answers], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_calibration(sets)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "noise"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.json").write_text('{"classes": ["sky", "cat", "car"]}')
    rng = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "images" / f"{i}.jpg")
        Image.fromarray(np.full((48, 64), i % 3, np.uint8)).save(folder / "masks" / f"{i}.png")
    (folder / "train.txt").write_text("\n".join(map(str, range(24))))
    return folder.parent


def test_a_photo_is_held_out_by_its_bytes_alone(data: Path) -> None:
    dataset = FolderDataset(data / "noise", "train")
    kept, held_out = dataset.divide(0.4)
    assert sorted(s.image_id for s in [*kept, *held_out]) == sorted(s.image_id for s in dataset)
    assert 0 < len(held_out) < len(dataset)
    chosen = {sample.image_id for sample in held_out}
    (data / "noise" / "train.txt").write_text("\n".join(map(str, range(23, 4, -1))))  # fewer, in another order
    again = {sample.image_id for sample in FolderDataset(data / "noise", "train").divide(0.4)[1]}
    assert again == {image_id for image_id in chosen if int(image_id) > 4}
    assert chosen < {sample.image_id for sample in dataset.divide(0.8)[1]}  # a larger share holds out these too


def test_margins_do_not_depend_on_the_calibration(data: Path) -> None:
    dataset, model = FolderDataset(data / "noise", "train"), Lasagna.random(seed=3)
    plain = collect_answers(model, dataset, model.calibration)
    steep = Calibration(temperature=0.5, offset=model.calibration.offset)  # the same decisions
    model.calibration = steep
    assert np.allclose(plain.margins, collect_answers(model, dataset, steep).margins, atol=1e-3)


def test_the_command_stores_the_calibration(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    checkpoint = tmp_path / "run" / "checkpoint"
    model = Lasagna.random(seed=3)
    model.save_pretrained(checkpoint)
    changes = [f"data={data}", f"output={tmp_path / 'run'}", "tasks.semantic.sets={noise: 1.0}", "holdout=0.5"]
    result = CliRunner().invoke(main, ["calibrate", str(RECIPE), *changes])
    if result.exit_code:  # random weights may have the slope wrong, and then nothing may be written
        assert "not more often" in result.output
        assert load_calibration(checkpoint) == model.calibration
    else:
        stored = json.loads((checkpoint / "calibration.json").read_text())
        assert f"temperature {stored['temperature']:.3f}" in result.output
        assert math.isfinite(stored["offset"])


def test_a_recipe_without_a_holdout_is_named(data: Path, tmp_path: Path) -> None:
    Lasagna.random().save_pretrained(tmp_path / "c")
    changes = [f"data={data}", "tasks.semantic.sets={noise: 1.0}", "holdout=0", "--model", str(tmp_path / "c")]
    result = CliRunner().invoke(main, ["calibrate", str(RECIPE), *changes])
    assert result.exit_code
    assert "holds no photo out" in result.output + str(result.exception)
