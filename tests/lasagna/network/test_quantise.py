"""Matrices in 8 and 4 bits: what they hold, what they cost, and that answers stay near."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lab.bench.quantise import memory_of_7b
from lasagna import Lasagna
from lasagna.commands.cli import main
from lasagna.errors import ConfigError
from lasagna.network.quantise import Int4Linear, Int8Linear, quantise_layers, weight_bytes


@pytest.mark.parametrize(("made", "steps"), [(Int8Linear, 254), (Int4Linear, 15)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("inputs", [128, 70], ids=["whole groups", "a part of a group"])
def test_a_weight_moves_by_half_a_step_at_most(made: type[nn.Module], steps: int, inputs: int) -> None:
    torch.manual_seed(0)
    full = nn.Linear(inputs, 9)
    found = made(full.weight, full.bias)
    restored = (found(torch.eye(inputs)) - full.bias).T
    widest = (full.weight.amax() - full.weight.amin()).item()
    assert (restored - full.weight).abs().max().item() <= 0.5 * widest / steps + 1e-5
    x = torch.randn(3, 4, inputs)
    torch.testing.assert_close(found(x), x @ restored.T + full.bias, rtol=1e-4, atol=1e-4)


def test_four_bits_hold_what_four_bits_can() -> None:
    grid = torch.arange(16.0).repeat(2, 8)  # each value of a group is one of the sixteen
    assert torch.equal(Int4Linear(grid, None).weight(), grid)


def test_bytes() -> None:
    weight = torch.randn(64, 256)
    assert weight_bytes(Int8Linear(weight.bfloat16(), None)) == 64 * 256 + 64 * 2
    assert weight_bytes(Int4Linear(weight.bfloat16(), None)) == 64 * 256 // 2 + 2 * 64 * 4 * 2


def test_only_the_layers_of_the_language_model_change() -> None:
    model = Lasagna.random(0)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    quantise_layers(model.model, "int8", torch.device("cpu"))
    after = model.model.state_dict()
    kept = {name for name in before if name in after}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    gone = {name for name in before if name not in after}
    assert gone
    assert all(name.startswith("language_model.layers.") and "proj" in name for name in gone)
    answer = model.segment(np.zeros((64, 64, 3), np.uint8), ["sky", "cat"])
    assert [one.name for one in answer.classes] == ["sky", "cat"]


def test_a_checkpoint_is_quantised_as_it_is_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    Lasagna.random(0).save_pretrained(folder)
    plain, small = (Lasagna.from_pretrained(folder, device="cpu", quantise=kind) for kind in ("none", "int4"))
    assert small.version == plain.version
    assert weight_bytes(small.model) < weight_bytes(plain.model)
    assert (plain.precision, small.precision) == ("float32, none", "float32, int4")
    with pytest.raises(ConfigError, match="unknown quantisation 'int3'; it is none, int8, int4"):
        Lasagna.from_pretrained(folder, quantise="int3")


@pytest.mark.slow
def test_the_7b_fits_smaller_cards() -> None:
    """6.5e9 weights in layers, 2 bytes each, then 1, then a half with a scale and an offset for every 64."""
    full, byte, half = (memory_of_7b(kind) for kind in ("none", "int8", "int4"))
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert (full - byte) * 2**30 == pytest.approx(layers, rel=2e-3)
    assert (full - half) * 2**30 == pytest.approx(layers * (2 - 0.5 - 4 / 64), rel=2e-3)


@pytest.mark.slow
def test_the_benchmark_compares_with_the_model_in_full() -> None:
    options = ["--random-weights", "lasagna-7b-tiny", "--device", "cpu", "--images", "1", "--classes", "6", "--json"]
    result = CliRunner().invoke(main, ["bench", "quantise", *options])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["quantise"] for row in rows] == ["none", "int8", "int4"]
    assert rows[0]["changed_decisions"] == 0
    assert rows[0]["probability"] == 0
    assert 0 < rows[1]["probability"] < rows[2]["probability"]
    assert [row["gib_weights"] for row in rows] == sorted((row["gib_weights"] for row in rows), reverse=True)
