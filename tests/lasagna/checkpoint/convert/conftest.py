"""Tiny checkpoints in foreign layouts, made here from one random model, so that no file of others is needed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lasagna.assistant.random_model import piece_tokenizer
from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
from lasagna.network.model import LasagnaModel

from .foreign import (
    CLIP,
    ROWS,
    TEXT,
    Weights,
    released_weights,
    sam_weights,
    save,
    write_clip,
    write_json,
    write_shards,
)


@pytest.fixture(scope="session")
def network() -> LasagnaModel:
    """The model that all layouts are of."""
    config = ModelConfig(
        text={**TEXT, "vocab_size": ROWS},
        vision=VisionConfig(
            kind="clip-sam",
            image_size=64,
            clip=CLIP,
            sam={"embed_dim": 16, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]},
        ),
        decoder=DecoderConfig(width=32, heads=8, mlp_dim=32),
    )
    torch.manual_seed(3)
    network = LasagnaModel(config).eval()
    for name, parameter in network.named_parameters():
        if name.startswith(("language_model", "lm_head", "projector")):
            parameter.data = parameter.data.bfloat16().float()  # so that no layout loses anything
    return network


@pytest.fixture
def released(tmp_path: Path, network: LasagnaModel) -> Path:
    """A folder in the released layout with its CLIP beside it, in two `.bin` shards."""
    folder = tmp_path / "released"
    folder.mkdir()
    weights = released_weights(network)
    write_shards(folder, weights)
    write_json(
        folder / "config.json",
        {
            "architectures": ["LaSagnAForCausalLM"],
            "model_type": "llava",
            **TEXT,
            "vocab_size": ROWS,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": True,
            "vision_tower": "./clip",
        },
    )
    piece_tokenizer().save(folder)
    write_clip(folder.parent / "clip", network)
    return folder


@pytest.fixture
def change_weights() -> Callable[[Path, Callable[[Weights], None]], None]:
    """A function that rewrites all weights of a folder as one safetensors file after changing them."""

    def change(folder: Path, function: Callable[[Weights], None]) -> None:
        weights: Weights = {}
        for path in sorted(folder.glob("*.bin")):
            weights |= torch.load(path, weights_only=True)
            path.unlink()
        (folder / "pytorch_model.bin.index.json").unlink()
        function(weights)
        save(weights, folder / "model.safetensors")

    return change


@pytest.fixture
def sam_file(tmp_path: Path, network: LasagnaModel) -> Path:
    torch.save({k: v.clone() for k, v in sam_weights(network).items()}, tmp_path / "sam_vit_b.pth")
    return tmp_path / "sam_vit_b.pth"
