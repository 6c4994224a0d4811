"""A data set of a few squares and a recipe of the smallest size: the engine's code, in seconds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.recipe import Recipe
from training.recipe_file import read_recipe

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


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one data set, `squares`, in the folder layout: squares of colour on grey, a void frame."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "squares"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    (folder / "classes.json").write_text('{"classes": ["backdrop", "red", "blue"], "background_index": 0}')
    rng = np.random.default_rng(0)
    for i in range(4):
        image, mask = np.full((80, 100, 3), 120, np.uint8), np.zeros((80, 100), np.uint8)
        for index, colour in ((1, (220, 20, 20)), (2, (20, 20, 220))):
            if i % 2 and index == 2:
                continue
            top, left = rng.integers(4, 36), rng.integers(4, 56)
            image[top : top + 36, left : left + 36], mask[top : top + 36, left : left + 36] = colour, index
        mask[:2] = 255
        Image.fromarray(image).save(folder / "images" / f"{i}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("0\n1\n2\n3\n")
    return root


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
