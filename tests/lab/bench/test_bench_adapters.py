"""`lasagna bench adapters` on a tiny configuration."""

import json

import pytest
import torch
from click.testing import CliRunner

from lab.bench.adapters import _compare
from lab.bench.random_weights import random_lasagna
from lasagna.commands.cli import main

TINY = ("--random-weights", "lasagna-7b-tiny", "--device", "cpu", "--repeats", "1")


@pytest.mark.slow
def test_every_way_decides_as_the_merged_weights_do() -> None:
    result = CliRunner().invoke(
        main, ["bench", "adapters", *TINY, "--versions", "3", "--images", "2", "--classes", "5", "--json"]
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    rows = {row["way"]: row for row in printed["rows"]}
    assert list(rows) == ["no adapter", "merged, one by one", "apart, one by one", "apart, in one batch"]
    shape = random_lasagna("lasagna-7b-tiny", "released", ["cat"], "cpu").model.language_model.shape
    layers, width = shape.num_hidden_layers, shape.hidden_size
    assert rows["merged, one by one"]["mib_version"] * 2**20 == layers * 2 * width**2 * 4
    assert rows["apart, in one batch"]["mib_version"] * 2**20 == layers * 2 * 2 * width * 8 * 4
    assert rows["merged, one by one"]["mib_version_7b"] == 2048
    for name in ("apart, one by one", "apart, in one batch"):
        assert rows[name]["changed_decisions"] == 0
        assert 0 < rows[name]["largest_change"] < 1e-3


def test_versions_that_are_mixed_up_are_noticed() -> None:
    merged = torch.tensor([[3.0, -2.0], [-3.0, 2.0]])
    assert _compare(merged, merged + 0.001) == (pytest.approx(0.001, rel=1e-2), 0)
    assert _compare(merged, merged.flip(0))[1] == 4
    assert _compare(torch.tensor([1.0, 1e-6]), torch.tensor([1.0, -1e-6]))[1] == 0, "rounding"
