"""A batch, then its images one by one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lasagna import Lasagna
from lasagna.assistant.each import segment_each
from lasagna.errors import QueryError
from lasagna.masks.segmentation import ClassQuery, Segmentation

QUERY = [ClassQuery("sky"), ClassQuery("tree")]


def picture(value: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8))


class Failing:
    """A real model that has no memory for white images, nor for batches that hold one."""

    def __init__(self, error: Exception) -> None:
        self.model = Lasagna.random(0, "paper")
        self.error = error
        self.sizes: list[int] = []

    def segment_batch(self, images: Sequence[Image.Image], lists: Any, **options: Any) -> list[Segmentation]:
        self.sizes.append(len(images))
        if any(image.getpixel((0, 0)) == (255, 255, 255) for image in images):
            raise self.error
        return self.model.segment_batch(images, lists, **options)


def test_one_failing_image_takes_no_other_down(caplog: pytest.LogCaptureFixture) -> None:
    model = Failing(MemoryError("no room"))
    images = [picture(10), picture(255), picture(200)]
    outcomes = segment_each(model.segment_batch, images, [QUERY] * 3, threshold=0.5)
    assert [type(outcome) for outcome in outcomes] == [Segmentation, MemoryError, Segmentation]
    assert model.sizes == [3, 1, 1, 1]
    assert "a batch of 3 images failed (MemoryError: no room)" in caplog.text
    alone = model.model.segment(images[2], QUERY, threshold=0.5)
    assert isinstance(outcomes[2], Segmentation)
    assert [one.name for one in outcomes[2].present] == [one.name for one in alone.present]


def test_what_is_about_no_image_is_raised_at_once() -> None:
    model = Failing(QueryError("a name without letters"))
    with pytest.raises(QueryError):
        segment_each(model.segment_batch, [picture(10), picture(255)], [QUERY] * 2, fatal=(QueryError,))
    assert model.sizes == [2]
