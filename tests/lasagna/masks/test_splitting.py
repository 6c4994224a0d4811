"""A mask cut into objects by its shape: what always holds, and what it finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import disk, ellipse

from lasagna.masks.segmentation import Mask
from lasagna.masks.splitting import SIDE, by_size, fill, parts_of, shrink, split_by_shape


def discs(size: tuple[int, int], *places: tuple[int, int, int]) -> Mask:
    """Discs of (row, column, radius)."""
    mask = np.zeros(size, np.bool_)
    for row, column, radius in places:
        mask[disk((row, column), radius, shape=size)] = True
    return mask


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_pieces_are_together_the_mask_and_each_has_a_pixel(seed: int, height: int, width: int, share: float) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < share
    mask[: height // 2] &= random.random() < 0.5
    for split in (parts_of, split_by_shape):
        numbers = split(mask)
        assert ((numbers > 0) == mask).all()
        counts = np.bincount(numbers.reshape(-1))[1:]
        assert (counts > 0).all()
        assert (np.diff(counts) <= 0).all(), "the largest comes first"
        assert (split(mask) == numbers).all()


def test_touching_discs_are_objects() -> None:
    mask = discs((200, 200), (50, 50, 25), (50, 97, 25), (95, 70, 25), (150, 150, 30))
    assert parts_of(mask).max() == 2
    numbers = split_by_shape(mask)
    assert numbers.max() == 4
    centres = [numbers[place] for place in ((50, 50), (50, 97), (95, 70), (150, 150))]
    assert len(set(centres)) == 4


def test_what_is_long_or_has_a_neck_is_one() -> None:
    body = np.zeros((200, 300), np.bool_)
    body[ellipse(100, 120, 30, 90, shape=body.shape)] = True  # an animal: body, neck, head, legs
    body[60:80, 200:215] = body[40:70, 205:250] = True
    body[70:100, 190:215] = True
    body[120:190, 60:75] = body[120:190, 160:175] = True
    assert parts_of(body).max() == 1
    assert split_by_shape(body).max() == 1


def test_specks_belong_to_their_neighbour() -> None:
    mask = discs((200, 200), (50, 50, 25), (150, 150, 25))
    mask[80, 50] = mask[120, 160] = True
    numbers = parts_of(mask)
    assert numbers.max() == 2
    assert numbers[80, 50] == numbers[50, 50]
    assert numbers[120, 160] == numbers[150, 150]


def test_where_everything_is_a_speck_the_parts_are_objects() -> None:
    mask = np.zeros((400, 400), np.bool_)
    mask[::40, ::40] = True
    assert parts_of(mask).max() == 100


def test_a_large_photo_is_told_apart_as_a_small_one() -> None:
    small = discs((200, 200), (50, 50, 25), (50, 97, 25))
    large = small.repeat(12, axis=0).repeat(12, axis=1)
    assert max(shrink(large).shape) == SIDE
    assert split_by_shape(large).max() == split_by_shape(small).max() == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3, 5)])
def test_no_pixel_and_one(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.bool_)
    assert split_by_shape(mask).max() == 0
    mask[-1, -1] = True
    assert (split_by_shape(mask) == mask).all()


def test_fill_and_by_size() -> None:
    numbers = np.array([[7, 0, 0, 0, 3, 3]])
    assert fill(numbers, np.array([[True, True, False, True, True, True]])).tolist() == [[7, 7, 0, 3, 3, 3]]
    assert by_size(np.array([[7, 0, 3, 3]])).tolist() == [[2, 0, 1, 1]]


@pytest.mark.parametrize("corner", [(-1, -1), (-1, 1), (1, -1), (1, 1)])
def test_a_pixel_that_hangs_on_a_corner_is_no_object(corner: tuple[int, int]) -> None:
    mask = np.zeros((120, 160), np.bool_)
    mask[40:90, 50:110] = True
    row, column = (40 if corner[0] < 0 else 89), (50 if corner[1] < 0 else 109)
    mask[row + corner[0], column + corner[1]] = True
    assert split_by_shape(mask).max() == 1
