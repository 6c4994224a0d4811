"""The photos of `python -m lab.loop.instant_pictures`. It was run as a whole for docs/loop.md; that takes minutes."""

from pathlib import Path

import numpy as np
from PIL import Image

from backend.demo.correcting import coin_photo
from lab.loop.instant_pictures import SHOWN_AFTER, save, windows


def test_no_corrected_window_shows_what_is_shown(tmp_path: Path) -> None:
    photo, coins = coin_photo()
    photo = photo.astype(int)
    pieces, shown = windows(tmp_path)
    assert len(pieces) == max(SHOWN_AFTER)
    assert len(shown) == len(SHOWN_AFTER)
    assert len({path.read_bytes() for path in shown}) == 1
    left = photo.shape[1] * 2 // 3

    def left_edges(path: Path) -> list[int]:
        part = np.asarray(Image.open(path).convert("L")).astype(int)
        height, width = part.shape
        return [
            x
            for x in range(photo.shape[1] - width + 1)
            for y in range(photo.shape[0] - height + 1)
            if photo[y, x] == part[0, 0] and np.array_equal(photo[y : y + height, x : x + width], part)
        ]

    assert left_edges(shown[0]) == [left]
    assert all(max(left_edges(piece.path)) + piece.truth.shape[1] <= left for piece in pieces)
    assert all(0.05 < piece.truth.mean() < 0.6 for piece in pieces)
    assert coins[:, left:].mean() > 0


def test_a_picture_is_small(tmp_path: Path) -> None:
    save(Image.new("RGB", (320, 300), "white"), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size < 2000
