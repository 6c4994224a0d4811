"""What the tests of the learning loop share: photos of squares, and a person who marks them with rectangles."""

import io
from typing import Any

import numpy as np
from PIL import Image

from tests.backend.backend_helpers import StubLabelStudio

SIZE = (96, 80)
"""Width and height of the photos."""
TINY = (
    "optimiser.steps=4 optimiser.batch_size=2 optimiser.micro_batch=1 optimiser.warmup=1 optimiser.log_every=1 "
    "optimiser.save_every=1 optimiser.precision=float32 augment.view=[64,64] tensorboard=false"
)
"""Changes that make the shipped fine-tune's recipe one of seconds."""


def square(seed: int) -> tuple[bytes, dict[str, Any]]:
    """A PNG of a red square on noise, another one for each seed, and its place in percent."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 200, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    left, top = int(rng.integers(0, 56)), int(rng.integers(0, 40))
    pixels[top : top + 36, left : left + 36] = (220, 20, 20)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    width, height = SIZE
    place = {"x": 100 * left / width, "y": 100 * top / height, "width": 3600 / width, "height": 3600 / height}
    return buffer.getvalue(), place


def rectangle(place: dict[str, Any], label: str = "Cat", **more: Any) -> dict[str, Any]:
    """A region as the editor writes it."""
    region = {"id": "r1", "from_name": "rect", "to_name": "image", "type": "rectanglelabels", "origin": "manual"}
    value = {**place, "rotation": 0, "rectanglelabels": [label]}
    return {**region, "original_width": SIZE[0], "original_height": SIZE[1], "value": value, **more}


def correct(stub: StubLabelStudio, count: int, first: int = 1) -> list[int]:
    """Adds tasks and annotates each: every second one is empty, a certain absence of all labels."""
    tasks = stub.add_tasks(count, first)
    for task in tasks:
        data, place = square(task["id"])
        stub.images[task["data"]["image"]] = data
        stub.annotate(task["id"], [rectangle(place)] if task["id"] % 2 else [])
    return [task["id"] for task in tasks]
