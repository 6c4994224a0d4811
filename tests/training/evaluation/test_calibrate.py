"""Calibration: the fit finds what made the answers, and the command stores it beside the checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lasagna import Lasagna
from lasagna.checkpoint.folder import Calibration, load_calibration
from lasagna.checkpoint.vocabulary import load_vocabulary
from lasagna.commands.cli import main
from lasagna.errors import DataError
from training.data.sets import divide
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.evaluation.calibrate import (
    PresenceAnswers,
    answers_by_class,
    collect_answers,
    fit_calibration,
    fit_class_offsets,
    mean_precisions,
)
from training.evaluation.metrics import expected_calibration_error
from training.evaluation.scores import ImageScore
from training.evaluation.scoring import ClassScore

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "nano.yaml"


def answers(calibration: Calibration, count: int, seed: int) -> PresenceAnswers:
    """PresenceAnswers of any size, and truths drawn with the probabilities that the calibration gives them."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 4, count)
    probability = 1 / (1 + np.exp(-(margins - calibration.offset) / calibration.temperature))
    return PresenceAnswers(margins, rng.random(count) < probability)


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
        pytest.param([PresenceAnswers(np.zeros(3), np.ones(3, bool))], "3 present ones of 3", id="nothing-absent"),
        pytest.param(
            [PresenceAnswers(np.array([-1.0, 1.0, 2.0]), np.array([1, 0, 0], bool))], "not more often", id="reversed"
        ),
    ],
)
def test_what_cannot_be_calibrated_is_named(sets: list[PresenceAnswers], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_calibration(sets)


@pytest.mark.parametrize(
    ("count", "near", "tolerance"),
    [
        pytest.param(4, Calibration(1.0, 0.5), 0.6, id="few-stay-at-the-start"),
        pytest.param(20_000, Calibration(2.5, -1.5), 0.1, id="plenty-go-where-they-are"),
    ],
)
def test_a_fit_that_starts_from_another_calibration(count: int, near: Calibration, tolerance: float) -> None:
    found = fit_calibration([answers(Calibration(2.5, -1.5), count, seed=1)], Calibration(1.0, 0.5))
    assert math.log(found.temperature) == pytest.approx(math.log(near.temperature), abs=tolerance)
    assert found.offset == pytest.approx(near.offset, abs=tolerance)


def test_separable_answers_do_not_make_everything_certain() -> None:
    separable = PresenceAnswers(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1], bool))
    found = fit_calibration([separable], Calibration())
    assert 0.3 < found.temperature < 1
    only_present = PresenceAnswers(np.array([-1.0, 1.0]), np.array([1, 1], bool))
    assert -2 < fit_calibration([only_present], Calibration()).offset < 0


GLOBAL = Calibration(temperature=2.0, offset=1.0)


@pytest.mark.parametrize(
    ("count", "least", "most"),
    [
        pytest.param(1, 0.0, 0.15, id="one-answer"),
        pytest.param(10, 0.1, 0.75, id="few"),
        pytest.param(5000, 0.95, 1.05, id="plenty"),
    ],
)
def test_class_offsets_are_shrunk_by_the_number_of_answers(count: int, least: float, most: float) -> None:
    """The share of the way from the global offset to the class's own, 2.0 (margins) away; a median of many draws."""
    own = Calibration(GLOBAL.temperature, GLOBAL.offset + 2.0)
    moved = []
    for seed in range(15 if count < 1000 else 3):
        found = fit_class_offsets({"cat": answers(own, count, seed)}, GLOBAL)
        assert (found.temperature, found.offset) == (GLOBAL.temperature, GLOBAL.offset)
        moved.append(found.class_offsets["cat"] / 2.0)
    assert least <= abs(float(np.median(moved))) <= most


def test_each_class_has_its_own_offset_and_the_answers_become_frequencies() -> None:
    shy, bold = Calibration(2.0, 4.0), Calibration(2.0, -2.0)
    made = {
        "shy": answers(shy, 4000, 1),
        "bold": answers(bold, 4000, 2),
        "none": PresenceAnswers(np.zeros(0), np.zeros(0, bool)),
    }
    found = fit_class_offsets(made, GLOBAL)
    assert found.class_offsets.keys() == {"shy", "bold"}
    assert found.class_offsets["shy"] == pytest.approx(3.0, abs=0.3)
    assert found.class_offsets["bold"] == pytest.approx(-3.0, abs=0.3)
    own = Calibration(found.temperature, found.offset + found.class_offsets["shy"])
    before, after = (
        expected_calibration_error(made["shy"].present, made["shy"].probabilities(one)) for one in (GLOBAL, own)
    )
    assert after < 0.03 < before
    assert fit_class_offsets(made, found, spread=0).class_offsets == {}


def test_classes_that_were_not_asked_keep_the_offset_that_they_had() -> None:
    made = {name: answers(Calibration(1.0, 2.0), 400, seed) for seed, name in enumerate(("cat", "dog"))}
    overall = fit_calibration(list(made.values()), Calibration(1.0, -0.5))
    alone = fit_class_offsets(made, overall)
    found = fit_class_offsets(made, overall, others=-0.5)
    assert (found.temperature, found.offset) == (overall.temperature, -0.5)
    assert found.class_offsets.keys() == {"cat", "dog"}
    for name, own in alone.class_offsets.items():
        assert found.offset + found.class_offsets[name] == pytest.approx(overall.offset + own)
        assert found.offset + found.class_offsets[name] == pytest.approx(2.0, abs=0.4)
    unmoved = fit_class_offsets(made, overall, spread=0, others=-0.5)
    assert unmoved.class_offsets == pytest.approx(dict.fromkeys(made, overall.offset + 0.5))


def test_the_sign_of_an_offset_is_that_of_the_model() -> None:
    """A class that is said too often gets a higher bar: the model adds the offset to the margin that it asks for."""
    said_too_often = PresenceAnswers(np.full(30, 3.0), np.zeros(30, bool))
    found = fit_class_offsets({"cat": said_too_often}, Calibration())
    assert found.class_offsets["cat"] > 0


def test_answers_of_scored_photos_by_what_the_model_reads() -> None:
    own = Calibration(2.0, 0.5, {"cat": 1.0})
    probability = 1 / (1 + math.exp(-(3.0 - 1.5) / 2.0))
    cat = ClassScore("Cat", 0, 0, 9, True, True, probability)
    sky = ClassScore("sky", 0, 0, 0, False, False, 1e-30)
    other = ClassScore("cat", 0, 0, 0, False, True, probability)
    scores = [ImageScore("a", (cat, sky)), ImageScore("b", (other,))]
    found = answers_by_class(scores, own, str.lower)
    assert found.keys() == {"cat", "sky"}
    assert found["cat"].margins.tolist() == pytest.approx([3.0, 3.0])
    assert found["cat"].present.tolist() == [True, False]
    assert math.isfinite(found["sky"].margins[0])


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
    def ids(source: Source) -> set[str]:
        return {source[i].image_id for i in range(len(source))}

    dataset = Folder(data / "noise", "train")
    kept, held_out = divide(dataset, 0.4)
    assert ids(kept) | ids(held_out) == ids(dataset)
    assert len(kept) + len(held_out) == len(dataset)
    assert 0 < len(held_out) < len(dataset)
    chosen = ids(held_out)
    (data / "noise" / "train.txt").write_text("\n".join(map(str, range(23, 4, -1))))  # fewer, in another order
    again = ids(divide(Folder(data / "noise", "train"), 0.4)[1])
    assert again == {image_id for image_id in chosen if int(image_id) > 4}
    assert chosen < ids(divide(dataset, 0.8)[1])  # a larger share holds out these too


def test_margins_do_not_depend_on_the_calibration(data: Path) -> None:
    dataset, model = Folder(data / "noise", "train"), Lasagna.random(seed=3)
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


def test_the_command_notes_what_was_taught(data: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint"
    Lasagna.random(seed=3).save_pretrained(checkpoint)
    assert load_vocabulary(checkpoint) is None
    changes = [f"data={data}", f"output={tmp_path / 'run'}", "tasks.semantic.sets={noise: 1.0}", "holdout=0.5"]
    result = CliRunner().invoke(main, ["calibrate", str(RECIPE), *changes, "--vocabulary"])
    assert result.exit_code == 0, result.output
    found = load_vocabulary(checkpoint)
    assert found is not None
    kept = divide(Folder(data / "noise", "train"), 0.5)[0]
    assert set(found.names) <= set(kept.classes)
    assert all(0 < taught.photos <= len(kept) for taught in found.names.values())
    assert load_calibration(checkpoint) == Lasagna.random(seed=3).calibration, "nothing else is written"


def test_a_set_of_which_nothing_is_known_does_not_count() -> None:
    some, nothing = answers(Calibration(1.5, 0.3), 2000, seed=1), PresenceAnswers(np.zeros(0), np.zeros(0, bool))
    assert fit_calibration([some, nothing]) == fit_calibration([some])


def test_the_average_precision_of_names() -> None:
    margins, present = np.zeros(2), np.array([True, False])
    sets = [
        PresenceAnswers(margins, present, {"cat": (3, 0.5), "sky": (1, 1.0)}),
        PresenceAnswers(margins, present, {"cat": (1, 0.9)}),
    ]
    assert mean_precisions(sets) == pytest.approx({"cat": 0.6, "sky": 1.0})


def test_a_recipe_without_a_holdout_is_named(data: Path, tmp_path: Path) -> None:
    Lasagna.random().save_pretrained(tmp_path / "c")
    changes = [f"data={data}", "tasks.semantic.sets={noise: 1.0}", "holdout=0", "--model", str(tmp_path / "c")]
    result = CliRunner().invoke(main, ["calibrate", str(RECIPE), *changes])
    assert result.exit_code
    assert "holds no photo out" in result.output + str(result.exception)
