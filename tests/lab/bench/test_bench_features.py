"""`lasagna bench features` on a tiny configuration; the 7B shapes are built, without their weights."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lab.bench.features import seven_b
from lasagna.commands.cli import main
from lasagna.network.model import LasagnaModel

TINY = {
    "text": {
        "vocab_size": 2100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "vision": {
        "kind": "clip-sam",
        "image_size": 224,
        "clip": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "sam": {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
    },
    "decoder": {"width": 16, "heads": 2, "mlp_dim": 32},
}


@pytest.mark.slow
def test_a_row_compares_both_ways(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    arguments = ["--config", str(config), "--classes", "1,7", "--batch", "2", "--repeats", "1"]
    arguments += ["--device", "cpu", "--dtype", "float32,bfloat16"]
    result = CliRunner().invoke(main, ["bench", "features", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["setting"]["photos"] == 2
    found = [(row["dtype"], row["classes"]) for row in report["rows"]]
    assert found == [("float32", 1), ("float32", 7), ("bfloat16", 1), ("bfloat16", 7)]
    for row in report["rows"]:
        assert row["same_loss"]
        # Features of float32 are rounded to half precision: the losses are close, and not the same.
        assert 0 < row["loss_difference"] < 1e-3 or row["dtype"] == "bfloat16"
        assert 0 < row["tflop_kept"] < row["tflop_direct"]
        assert row["times_faster"] == pytest.approx(row["seconds_direct"] / row["seconds_kept"])
        assert row["mb_per_photo"] == pytest.approx((4 * 32 + 14 * 14 * 16) * 2 / 1e6, rel=0.1)


def test_depth_and_config_exclude_each_other(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    result = CliRunner().invoke(main, ["bench", "features", "--config", str(config), "--depth", "2"])
    assert result.exit_code == 2
    assert "--depth is for the 7B shapes" in result.output


# Parameters of the published networks: Llama 7B 6.74e9, ViT-H 0.637e9 and ViT-L/14 0.304e9.
@pytest.mark.parametrize(("depth", "billions"), [(1, 7.7), (8, 1.2)])
def test_the_7b_shapes(depth: int, billions: float) -> None:
    with torch.device("meta"):
        model = LasagnaModel(seven_b(depth))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.1)
    assert len(model.encoder.sam.blocks) == 32 // depth
    global_blocks = [i for i, block in enumerate(model.encoder.sam.blocks) if not block.window_size]
    assert global_blocks == ([7, 15, 23, 31] if depth == 1 else [3])
    assert model.encoder.num_tokens == 256
