"""Images that are made to take memory, read for real, each in a process of its own."""

from pathlib import Path

import pytest

from lab.bench import bombs
from lasagna.settings import Settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ICO with a large PNG", "an icon"),
        ("TIFF 16 x 16, a tile of 30000 x 30000", "bytes of memory to decode; the limit is 500000000"),
        ("the same, its tags twice", "a tag twice"),
        ("JPEG 2000, precincts of one pixel", "JPEG 2000"),
        ("PNG, 16-bit RGB", "bytes of memory to decode; the limit is 500000000"),
        ("WebP", "bytes of memory to decode; the limit is 500000000"),
    ],
)
def test_a_bomb_is_refused_from_its_header(name: str, says: str, tmp_path: Path) -> None:
    bombs.build(name, tmp_path / "bomb")
    outcome, most = bombs.read_alone(tmp_path / "bomb", limit=500_000_000)
    assert says in outcome
    assert most is not None
    assert most < 30_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PNG, 16-bit grey", "PNG, palette, transparent", "PNG, 16-bit RGBA, smaller"])
def test_a_large_image_takes_no_more_than_the_limit(name: str, tmp_path: Path) -> None:
    bombs.build(name, tmp_path / "large")
    outcome, most = bombs.read_alone(tmp_path / "large")
    assert outcome.startswith("read, ")
    assert most is not None
    assert most < Settings.load({}).max_image_memory
