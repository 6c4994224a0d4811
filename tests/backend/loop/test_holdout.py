"""Which side a photo is on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.loop.holdout import JUDGED, Sides, difference_hash
from lasagna.errors import DataError
from training.evaluation.gate import Limits


def photo(number: int) -> str:
    """The hash of a photo's bytes, as good as random."""
    return f"{number * 2654435761 % 2**32:08x}"


def looks(number: int) -> str:
    """What it looks like: far from every other number's."""
    return f"{int(np.random.default_rng(number).integers(0, 2**63)):016x}"


def project(count: int, first: int = 0) -> dict[str, str]:
    return {photo(i): looks(i) for i in range(first, first + count)}


def held_out(sides: Sides, photos: dict[str, str]) -> set[str]:
    return {one for one, place in sides.divide(photos).items() if place.side == "holdout"}


@pytest.mark.parametrize(("count", "expected"), [(8, 4), (12, 4), (20, 5), (25, 5), (40, 8), (100, 20), (1200, 200)])
def test_how_many_are_held_out(tmp_path: Path, count: int, expected: int) -> None:
    assert len(held_out(Sides(tmp_path / "sides.json"), project(count))) == expected


def test_as_many_are_held_out_as_the_gate_asks_for() -> None:
    assert Limits().least_photos == JUDGED


def test_a_photo_never_changes_sides(tmp_path: Path) -> None:
    path = tmp_path / "sides.json"
    before = Sides(path).divide(project(20))
    for count in (21, 40, 200):
        after = Sides(path).divide(project(count))
        assert {one: after[one] for one in before} == before
    fewer = Sides(path).divide(project(10, first=5))
    assert {one: place.side for one, place in fewer.items()} == {one: after[one].side for one in fewer}


def test_the_same_photos_are_divided_alike_in_any_order(tmp_path: Path) -> None:
    photos = project(30)
    turned = dict(reversed(photos.items()))
    assert Sides(tmp_path / "a").divide(photos) == Sides(tmp_path / "b").divide(turned)


def nearly(value: str, bits: int) -> str:
    """A hash that differs in so many bits."""
    return f"{int(value, 16) ^ (2**bits - 1):016x}"


@pytest.mark.parametrize("at_once", [True, False], ids=["added at once", "added later"])
def test_photos_that_look_the_same_stay_together(tmp_path: Path, at_once: bool) -> None:
    photos = project(20)
    twins = {f"twin of {one}": nearly(value, 6) for one, value in photos.items()}
    sides = Sides(tmp_path / "sides.json")
    if not at_once:
        sides.divide(photos)
    places = sides.divide(photos | twins)
    assert all(places[f"twin of {one}"].side == places[one].side for one in photos)
    assert {place.side for place in places.values()} == {"train", "holdout"}


def test_photos_that_differ_are_apart(tmp_path: Path) -> None:
    photos = project(20)
    places = Sides(tmp_path / "sides.json").divide(photos | {f"other {k}": nearly(v, 7) for k, v in photos.items()})
    assert len({place.group for place in places.values()}) == 40


def test_a_photo_between_both_sides_is_on_neither(tmp_path: Path) -> None:
    photos, path = project(20), tmp_path / "sides.json"
    places = Sides(path).divide(photos)
    one, other = (next(p for p, place in places.items() if place.side == side) for side in ("train", "holdout"))
    bridge = dict(zip(("a", "b"), (photos[one], photos[other]), strict=True))
    kept = Sides(path)
    kept.places["near one"] = kept.places[one].__class__(nearly(bridge["b"], 10), one, "train")
    found = kept.divide({**photos, "between": nearly(bridge["b"], 5)})
    assert found["between"].side == "neither"
    assert Sides(path).divide({**photos, "between": nearly(bridge["b"], 5)})["between"].side == "neither"


def test_a_large_group_trains(tmp_path: Path) -> None:
    frames = {f"{i:x}": nearly(looks(1), i % 4) for i in range(60)}
    places = Sides(tmp_path / "sides.json").divide(project(20, first=2) | frames)
    assert {places[frame].side for frame in frames} == {"train"}


def test_too_few_are_not_placed(tmp_path: Path) -> None:
    sides = Sides(tmp_path / "sides.json")
    with pytest.raises(DataError, match="corrections of 7 different photos"):
        sides.divide(project(7))
    assert not sides.path.exists()
    assert len(held_out(sides, project(8))) == 4


def test_a_damaged_file_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "sides.json"
    path.write_text('{"a": ')
    with pytest.raises(DataError, match="take it from a backup"):
        Sides(path)


def test_the_hash_sees_content_not_size(photos: dict[str, Path]) -> None:
    with Image.open(photos["cat"]) as image:
        cat = image.convert("RGB")
    with Image.open(photos["cup"]) as image:
        cup = image.convert("RGB")
    smaller = cat.resize((cat.width // 2, cat.height // 2))

    def distance(a: Image.Image, b: Image.Image) -> int:
        return (int(difference_hash(a), 16) ^ int(difference_hash(b), 16)).bit_count()

    assert distance(cat, smaller) <= 2
    assert distance(cat, cup) > 15
