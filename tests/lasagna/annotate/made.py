"""Photos, classes and what was written, for the tests of `lasagna annotate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from PIL import Image

CLASSES = ["sky", "road", "cat", "tree", "person", "car", "dog", "cup"]

Run = Callable[..., Result]
NAMES = ["a.jpg", "b.png", "north/x.jpg", "south/copy of b.png", "south/x.jpg", "south/ä &#1.png"]


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth random photo of that (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def computed(result: Result) -> int:
    """How many images the run computed, from its last words."""
    return int(result.stdout.split(" now,")[0].rsplit("(", 1)[1])
