"""A data set of a few squares and a recipe of the smallest size: the engine's code, in seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.recipe.files import read_recipe
from training.recipe.values import Recipe

TINY = """
output: {output}
data: {data}
seed: 1
model:
  vision: {{kind: pyramid, backbone: tf_efficientnet_lite0, image_size: 96, token_grid: 3}}
  text: {{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
          num_key_value_heads: 2, max_position_embeddings: 512}}
  decoder: {{width: 16, heads: 2, mlp_dim: 16, mask_channels: 4, coarse_mask: true, skip_channels: [4, 2]}}
  vocabulary: 300
trained: {{frozen_stages: 3}}
tasks: {{semantic: {{sets: {{squares: 1.0}}}}}}
augment: {{view: [96, 96], drop_tokens: 0.2}}
optimiser:
  steps: 6
  batch_size: 2
  micro_batch: 1
  learning_rate: 1.0e-3
  warmup: 2
  weight_decay: 0.05
  ema: 0.9
  precision: float32
  log_every: 1
  save_every: 2
"""


@pytest.fixture
def tiny_file(squares: Path, tmp_path: Path) -> Path:
    """A recipe file of the smallest size; its run's folder is `run` beside it."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(output=tmp_path / "run", data=squares))
    return path


@pytest.fixture
def tiny(tiny_file: Path) -> Callable[..., Recipe]:
    """A function from changes (key=value) to the checked recipe."""
    return lambda *changes: read_recipe(tiny_file, changes).recipe


LARGE = """
output: {output}
data: {data}
start: {start}
seed: 1
tasks:
  semantic: {{rate: 2, sets: {{squares: 1.0}}}}
  referring: {{rate: 1, sets: {{refcoco: 1.0}}}}
  reasoning: {{rate: 1, sets: {{reasonseg: 1.0}}}}
  vqa: {{rate: 1, sets: {{llava_instruct_150k: 1.0}}}}
trained:
  parts: [prompt_projection, segmenter.mask_decoder]
  token_rows: new
  lora: {{rank: 2, alpha: 4, dropout: 0.05, modules: [q_proj, v_proj]}}
optimiser:
  steps: 8
  batch_size: 2
  micro_batch: 1
  learning_rate: 1.0e-3
  warmup: 2
  precision: float32
  log_every: 2
  save_every: 4
"""


@pytest.fixture(scope="session")
def tiny_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the 7B models' architecture and dialect at the smallest size, with random weights."""
    from lasagna.assistant.random_model import piece_tokenizer
    from lasagna.checkpoint.folder import Calibration
    from lasagna.checkpoint.weights import save_checkpoint
    from lasagna.network.config import DecoderConfig, ModelConfig, VisionConfig
    from lasagna.network.model import LasagnaModel
    from lasagna.prompt.dialect import RELEASED

    tokenizer = piece_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    }
    clip = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    sam = {"embed_dim": 16, "depth": 2, "num_heads": 2, "global_attn_indexes": [1]}
    config = ModelConfig(
        text, VisionConfig("clip-sam", 128, clip=clip, sam=sam), DecoderConfig(width=32, heads=2, mlp_dim=32)
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("7b") / "tiny"
    save_checkpoint(folder, LasagnaModel(config), tokenizer, RELEASED, Calibration())
    return folder
