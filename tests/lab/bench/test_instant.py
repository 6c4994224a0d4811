"""`lasagna bench instant` and `bench learn`, and the default weights of presence, on made photos and a random model."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lab.bench.instant import mean_row
from lab.bench.instant_curves import ModelEyes, encode_photo, measure_set, possible_counts, score
from lab.paper.presence import Answers, fit_defaults, gather, left_out_figures
from lasagna import Lasagna
from lasagna.commands.cli import main
from training.data.sources.folder import Folder


def write_set(root: Path, name: str, train: int, val: int, colour: int = 0) -> Path:
    """Photos of a bright disc on the ground; `colour` makes sets differ."""
    folder = root / name
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": ["none", "disc", "ground"], "background_index": 0}))
    for split, first, count in (("train", 0, train), ("val", 100, val)):
        (folder / f"{split}.txt").write_text("".join(f"{first + i}\n" for i in range(count)))
        for seed in range(first, first + count):
            rng = np.random.default_rng(seed)
            y, x = np.mgrid[:64, :96]
            disc = (y - rng.integers(15, 40)) ** 2 + (x - rng.integers(20, 70)) ** 2 < rng.integers(8, 14) ** 2
            mask = np.where(disc, 1, 2)
            mask[56:] = 0
            mask[:, :3] = 255
            colours = np.array([[90, 140, 80], [230 - colour, 200, 60 + colour], [40, 60 + colour, 90]])
            photo = colours[np.where(mask == 255, 0, mask)] + rng.normal(size=(64, 96, 3)) * 10
            Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{seed}.jpg", quality=95)
            Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(seed=1)


def test_a_curve(tmp_path: Path, model: Lasagna) -> None:
    eyes, folder = ModelEyes(model), write_set(tmp_path, "discs", 7, 3)
    steps: list[None] = []
    rows = list(measure_set(eyes, folder, (1, 5, 20), 2, 10, lambda: steps.append(None)))
    assert [(row["choice"], row["corrections"]) for row in rows] == [
        (None, 0), (0, 1), (0, 5), (0, 7), (1, 1), (1, 5), (1, 7),
    ]  # fmt: skip
    assert len(steps) == 3 + 2 * 7
    assert [row["serves"] for row in rows[1:4]] == [False, True, True]
    before, all_of_it = rows[0], rows[3]
    assert all_of_it["miou"] > 0.8 > before["miou"]
    assert all_of_it["change"] < 0.1 < before["change"]
    assert rows[1]["miou"] == before["miou"]  # below five the model draws
    assert rows[3]["miou"] == pytest.approx(rows[6]["miou"], abs=0.05)  # all photos, in another order
    mean = mean_row(rows, "discs", 7)
    assert mean["serves"] == "2/2"
    assert mean["miou"] == pytest.approx((rows[3]["miou"] + rows[6]["miou"]) / 2, abs=1e-4)


def test_the_model_alone_is_scored_as_it_answers(tmp_path: Path, model: Lasagna) -> None:
    eyes, folder = ModelEyes(model), write_set(tmp_path, "discs", 1, 2)
    data = Folder(folder, "val")
    photos = [encode_photo(eyes, data, index) for index in range(2)]
    for index, photo in enumerate(photos):
        one = eyes.answer(None, photo, data.classes)
        other = model.segment(np.asarray(Image.open(data[index].image_path)), data.classes, exclusive=True)
        for a, b in zip(one.classes, other.classes, strict=True):
            assert a.probability == pytest.approx(b.probability, abs=1e-5)
            assert (a.mask is None) == (b.mask is None)
            assert a.mask is None or np.array_equal(a.mask, b.mask)
    assert 0 <= score(eyes, None, photos, data.classes)["accuracy"] <= 1


def test_counts_that_a_split_has() -> None:
    assert possible_counts((1, 2, 5, 10, 20, 40), 39) == [1, 2, 5, 10, 20, 39]
    assert possible_counts((5, 10), 3) == [3]


@pytest.mark.slow
def test_the_command(tmp_path: Path, model: Lasagna) -> None:
    write_set(tmp_path / "data", "discs", 6, 2)
    model.save_pretrained(tmp_path / "model")
    plot = tmp_path / "plot.svg"
    kept = tmp_path / "kept.jsonl"
    arguments = ["bench", "instant", "--root", tmp_path / "data", "--set", "discs", "--counts", "1,5", "--choices", "1",
                 "--model", tmp_path / "model", "--plot", plot, "--json", "--resume", kept]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["set"], row["corrections"]) for row in report["rows"]] == [("discs", 0), ("discs", 1), ("discs", 5)]
    assert report["rows"][2]["update_seconds"] > 0
    assert "<svg" in plot.read_text()
    again = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert json.loads(again.stdout)["rows"] == report["rows"]  # their seconds, too: nothing was measured anew
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:2]))  # killed before the last row
    after = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert [row["miou"] for row in json.loads(after.stdout)["rows"]] == [row["miou"] for row in report["rows"]]
    assert len(kept.read_text().splitlines()) == 3
    missing = CliRunner().invoke(main, [str(a) for a in [*arguments, "--set", "other"]])
    assert "has no data set other" in missing.output
    kept.write_text("[1, 2]\n")
    wrong = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "does not hold rows of this benchmark" in wrong.output


@pytest.mark.slow
def test_times(tmp_path: Path, model: Lasagna, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.bench.learn._OBSERVED", 3)
    model.save_pretrained(tmp_path / "model")
    arguments = ["bench", "learn", "--model", tmp_path / "model", "--corrections", "2,6", "--classes", "7",
                 "--repeats", "1", "--json"]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["classes"], row["corrections"]) for row in rows] == [(7, 2), (7, 6)]
    assert all(row[name] > 0 for row in rows for name in ("observe_s", "head_cpu_s", "stored_s", "with_head_s"))
    assert all(row["correction_mb"] <= 2 for row in rows)


def test_default_weights_of_presence(tmp_path: Path, model: Lasagna) -> None:
    eyes = ModelEyes(model)
    sets = [gather(eyes, write_set(tmp_path, f"discs {i}", 6, 1, colour=30 * i), 6) for i in range(2)]
    assert all(each.features.shape == (len(each.truth), 5) for each in sets)
    assert [row["set"] for row in left_out_figures(sets)] == ["discs 0", "discs 1"]


def test_sets_that_the_model_has_not_seen_count_half() -> None:
    """Two sets say that the model's answer is right, one that it is wrong: half of the weight keeps the balance."""
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.5
    features = rng.normal(size=(300, 5))

    def answers(name: str, sign: int) -> Answers:
        own = features.copy()
        own[:, 4] = sign * (2.0 * truth - 1) + rng.normal(size=300) * 0.5
        return Answers(name, own, truth)

    sets = [answers("a", 1), answers("b", 1), answers("new", -1)]
    assert fit_defaults(sets).weight[4] > 0.2
    assert abs(fit_defaults(sets, ["new"]).weight[4]) < 0.15
