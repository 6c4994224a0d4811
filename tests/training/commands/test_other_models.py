"""`lasagna evaluate` and `calibrate` with models of other makers: what a closed list lacks is in no figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from lab.bench.peer_models import write_model
from lasagna.checkpoint.folder import checkpoint_version, load_calibration
from lasagna.commands.cli import main

NAMES = ("sky", "cat", "thing")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve photos of noise with a band of sky, some with a cat; no closed list has its third class."""
    folder = tmp_path / "data" / "noise"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        mask = np.full((48, 64), 2 if number % 3 else 255, np.uint8)
        mask[:16] = 0
        if number % 2:
            mask[20:40, 10:40] = 1
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES, "background_index": None}))
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("\n".join(map(str, range(12))))
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize("kind", ["eomt", "clipseg", "sam3"])
def test_evaluate(kind: str, data: Path, tmp_path: Path) -> None:
    model = write_model(kind, tmp_path / kind, names=("sky", "cat", "dog"))
    closed = kind == "eomt"
    done = run(
        "evaluate", "--model", model, "--data", data, "--device", "cpu", "--json", "--pictures", tmp_path / "p.html"
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["model_version"], report["closed_list"]) == (checkpoint_version(model), closed)
    assert set(report["per_class"]) == set(NAMES) - ({"thing"} if closed else set())
    assert report["unknown"] == ({"thing": 8} if closed else {})
    said = run("evaluate", "--model", model, "--data", data, "--device", "cpu", "--limit", "3", "--guess-unknown")
    assert ("not in the list of the model, and in no figure (photos that have it): thing" in said.output) == closed
    assert "--guess-unknown scores" not in said.output, "a closed list has no guess"


@pytest.mark.parametrize("kind", ["eomt", "clipseg"])
def test_calibrate(kind: str, data: Path, tmp_path: Path) -> None:
    """A recipe that names photos of one's own; nothing is written where the scores say nothing."""
    model = write_model(kind, tmp_path / kind, names=("sky", "cat", "dog"))
    before = checkpoint_version(model)
    changes = ("replay=null", "holdout=0.9", "--model", model)
    done = run("calibrate", "finetune", f"tasks.semantic.sets.mine.path={data}", *changes)
    if done.exit_code:
        assert "take photos of what it knows" in " ".join(done.output.split())
        assert checkpoint_version(model) == before
    else:
        assert load_calibration(model).temperature > 0
        assert checkpoint_version(model) != before, "other probabilities are another version"


@pytest.mark.parametrize("option", ["--vocabulary", "--classifier"])
@pytest.mark.parametrize("kind", ["eomt", "sam3"])
def test_what_only_ours_has_is_refused_and_nothing_is_written(
    kind: str, option: str, data: Path, tmp_path: Path
) -> None:
    model = write_model(kind, tmp_path / kind)
    before = sorted(path.name for path in model.iterdir())
    done = run("calibrate", "finetune", f"tasks.semantic.sets.mine.path={data}", "--model", model, option)
    assert done.exit_code
    assert f"{option} has nothing to note" in " ".join(done.output.split())
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_set_of_which_it_can_be_asked_nothing(data: Path, tmp_path: Path) -> None:
    model = write_model("eomt", tmp_path / "eomt", names=("road", "car"))
    done = run(
        "calibrate", "finetune", f"tasks.semantic.sets.mine.path={data}", "replay=null", "holdout=0.9", "--model", model
    )
    assert done.exit_code
    assert "of classes that the model can be asked for" in " ".join(done.output.split())
