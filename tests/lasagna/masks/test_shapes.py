"""Bitmasks and ellipses: masks of regions whose size somebody else has chosen."""

import base64
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from lasagna.errors import DataError
from lasagna.masks.bitmask import bitmask_to_mask, mask_to_bitmask
from lasagna.masks.ellipses import Ellipse, ellipse_to_mask, mask_to_ellipses


def png_of(width: int, height: int) -> str:
    """A PNG whose header promises this size, and that holds nothing of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()


@pytest.mark.parametrize("side", [20, 12_000, 30_000, 200_000])
def test_a_bitmask_of_another_size_is_named_before_it_is_read(side: int) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="a bitmask"):
        bitmask_to_mask(png_of(side, side), (48, 64))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"no picture, but long enough for a header"])
def test_what_is_no_png_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match="a bitmask cannot be decoded"):
        bitmask_to_mask("data:image/png;base64," + base64.b64encode(data).decode(), (48, 64))


def test_a_bitmask_comes_back() -> None:
    mask = np.random.default_rng(0).random((48, 64)) > 0.5
    assert (bitmask_to_mask(mask_to_bitmask(mask), (48, 64)) == mask).all()


@pytest.mark.parametrize(
    "ellipse",
    [
        Ellipse(30.0, 20.0, 12.0, 5.0, 0.0),
        Ellipse(30.5, 20.25, 5.0, 12.0, 35.0),
        Ellipse(-3.0, 50.0, 20.0, 9.0, 120.0),  # partly outside
        Ellipse(500.0, 500.0, 20.0, 9.0, 10.0),  # wholly
        Ellipse(32.0, 24.0, 1e6, 1e6, 10.0),  # covers all
        Ellipse(32.0, 24.0, 0.4, 0.4, 0.0),
    ],
)
def test_an_ellipse_has_the_pixels_whose_centres_are_in_it(ellipse: Ellipse) -> None:
    ys, xs = np.mgrid[0:48, 0:64] + 0.5
    turn = np.radians(ellipse.rotation)
    along = ((xs - ellipse.x) * np.cos(turn) + (ys - ellipse.y) * np.sin(turn)) / ellipse.radius_x
    beside = ((ys - ellipse.y) * np.cos(turn) - (xs - ellipse.x) * np.sin(turn)) / ellipse.radius_y
    assert (ellipse_to_mask(ellipse, (48, 64)) == (along**2 + beside**2 <= 1)).all()


@pytest.mark.parametrize("ellipse", [Ellipse(3, 3, 0, 5, 0), Ellipse(float("nan"), 3, 2, 2, 0)])
def test_what_is_no_ellipse_has_no_pixel(ellipse: Ellipse) -> None:
    assert not ellipse_to_mask(ellipse, (48, 64)).any()


def test_an_ellipse_costs_no_more_than_its_mask() -> None:
    size = (3000, 4000)
    tracemalloc.start()
    mask = ellipse_to_mask(Ellipse(2000.0, 1500.0, 1900.0, 1400.0, 30.0), size)
    assert tracemalloc.get_traced_memory()[1] < 1.2 * mask.nbytes
    tracemalloc.stop()


def test_parts_become_ellipses_where_they_are() -> None:
    mask = np.zeros((48, 64), np.bool_)
    mask[30:40, 40:60] = True
    mask[5, 3] = True
    large, small = mask_to_ellipses(mask)
    assert (large.x, large.y) == (50.0, 35.0)
    assert (small.x, small.y) == (3.5, 5.5)
