"""The brush encoder: byte for byte the SDK's, for masks, for painted strokes and at the borders of its run lengths."""

import cv2
import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter.brush import decode_rle, encode_rle, mask2rle
from numpy.typing import NDArray
from PIL import Image

from lasagna.masks.brush_rle import _BLOCK, encode_brush_rle
from lasagna.masks.conversions import brush_rle_to_mask, mask_to_brush_rle
from lasagna.masks.segmentation import Mask

RUNS = (1, 2, 7, 8, 9, 16, 17, 255, 256, 257, 65535, 65536, 65537, 65538, 131072, 131073, 131080)


@st.composite
def ragged(draw: st.DrawFn) -> Mask:
    """Masks with short and long runs, of a size whose length in bits has any remainder."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), draw(st.floats(0.3, 9.0)))
    return noise > np.quantile(noise, draw(st.floats(0.0, 1.0)))


@st.composite
def strokes(draw: st.DrawFn) -> NDArray[np.uint8]:
    """RGBA (H, W, 4) as the editor's canvas holds it: anti-aliased lines of a label's colour on nothing."""
    height, width = draw(st.integers(2, 80)), draw(st.integers(2, 80))
    alpha = np.zeros((height, width), np.uint8)
    for _ in range(draw(st.integers(0, 4))):
        x0, y0, x1, y1 = (draw(st.integers(0, 79)) for _ in range(4))
        cv2.line(alpha, (x0, y0), (x1, y1), 255, draw(st.integers(1, 9)), cv2.LINE_AA)
    colour = draw(st.tuples(*[st.integers(0, 255)] * 3))
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[alpha > 0, :3] = colour
    rgba[..., 3] = alpha
    return rgba


@settings(deadline=None)
@given(npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, max_side=24)) | ragged())
def test_masks_are_written_as_the_sdk_writes_them(mask: Mask) -> None:
    rle = mask_to_brush_rle(mask)
    assert rle == mask2rle(np.where(mask, np.uint8(255), np.uint8(0)))
    assert np.array_equal(brush_rle_to_mask(rle, mask.shape), mask)


@settings(deadline=None)
@given(strokes(), st.integers(1, 255))
def test_strokes_are_written_and_read_as_by_the_sdk(rgba: NDArray[np.uint8], threshold: int) -> None:
    rle = encode_brush_rle(rgba)
    assert rle == encode_rle(rgba.ravel())
    decoded = decode_rle(rle).reshape(rgba.shape)
    assert np.array_equal(decoded, rgba)
    assert np.array_equal(brush_rle_to_mask(rle, rgba.shape[:2], threshold), decoded[..., 3] >= threshold)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(RUNS), st.integers(0, 255)), min_size=1, max_size=6))
def test_runs_of_every_size(runs: list[tuple[int, int]]) -> None:
    values = np.concatenate([np.full(length, value, np.uint8) for length, value in runs])
    assert encode_brush_rle(values) == encode_rle(values)


@pytest.mark.parametrize("length", RUNS)
@pytest.mark.parametrize("repeat", [1, 3, 4])
def test_repeated_values(length: int, repeat: int) -> None:
    values = np.repeat(np.array([9, 0, 255], np.uint8), [length, 1, 2])
    assert encode_brush_rle(values, repeat) == encode_rle(np.repeat(values, repeat))


def test_bytes_are_whole_numbers_that_json_can_hold() -> None:
    rle = mask_to_brush_rle(np.eye(3, dtype=bool))
    assert {type(byte) for byte in rle} == {int}


def test_more_runs_than_are_written_at_once() -> None:
    values = np.random.default_rng(0).integers(0, 3, 80_000, dtype=np.uint8)
    assert np.count_nonzero(np.diff(values)) > _BLOCK
    assert encode_brush_rle(values) == encode_rle(values)


def test_a_black_and_white_image_of_pillow_is_a_mask() -> None:
    """Its array is bool, with the byte 255 for True."""
    mask = np.asarray(Image.fromarray(np.eye(9, 14, dtype=np.uint8) * 255).convert("1"))
    assert mask_to_brush_rle(mask) == mask2rle(mask.astype(np.uint8) * 255)
