"""Expressions made from masks: on masks drawn by hand every text and every target is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.records import OTHER, UNKNOWN
from training.data.sources import Source
from training.data.sources.expressions import Expression, Expressions, expressions_of, nothing_meant, target_map

CLASSES = ("grass", "dog", "cow", "hat", "zebra", "person")
GRASS, DOG, COW, HAT = 0, 1, 2, 3
SIZE = (100, 200)


def draw(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """Grass with boxes (class, x, y, width, height)."""
    mask = np.full(SIZE, GRASS, np.int16)
    for index, x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = index
    return mask


def texts(mask: np.ndarray) -> dict[str, Expression]:
    """Every text of a mask; none is said twice."""
    found = expressions_of(mask, CLASSES)
    assert len({one.key for one in found}) == len(found)
    said = [(text, one) for one in found for text in one.texts]
    assert len({text for text, _ in said}) == len(said)
    return dict(said)


def centres(mask: np.ndarray, expression: Expression) -> list[tuple[int, int]]:
    """(x, y) of the middle of each connected part of the target, from the left."""
    import cv2

    labels = target_map(mask, expression.parts)
    _, _, _, found = cv2.connectedComponentsWithStats((labels[0] == 0).astype(np.uint8))
    return sorted((round(x), round(y)) for x, y in found[1:])


LEFT, MIDDLE, RIGHT = (DOG, 10, 40, 20, 20), (DOG, 90, 40, 20, 20), (DOG, 160, 40, 30, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the largest dog", [(174, 54)]),
        ("the leftmost dog", [(20, 50)]),
        ("the dog furthest to the right", [(174, 54)]),
        ("the dog in the middle", [(100, 50)]),
        ("the second dog from the left", [(100, 50)]),
        ("second dog from right", [(100, 50)]),
        ("the two dogs on the left", [(20, 50), (100, 50)]),
        ("the two rightmost dogs", [(100, 50), (174, 54)]),
        ("the three dogs", [(20, 50), (100, 50), (174, 54)]),
        ("the only cow", [(100, 90)]),
    ],
)
def test_what_an_expression_means(text: str, expected: list[tuple[int, int]]) -> None:
    mask = draw(LEFT, MIDDLE, RIGHT, (COW, 80, 82, 40, 16))
    found = texts(mask)
    assert np.array(centres(mask, found[text])) == pytest.approx(np.array(expected), abs=1)
    assert "the smallest dog" not in found  # two are of one size
    assert "the dog at the top" not in found  # all are about as high
    assert not any("grass" in said for said in found)


def test_two_of_a_kind_and_two_of_different_kinds() -> None:
    mask = draw((DOG, 10, 10, 20, 20), (DOG, 120, 60, 40, 30))
    found = texts(mask)
    for said in ("the dog on the left", "the left dog", "the dog near the top", "the smallest dog"):
        assert centres(mask, found[said]) == [(20, 20)], said
    for said in ("the dog on the right", "the dog at the bottom", "the biggest dog"):
        assert centres(mask, found[said])[0][0] > 100, said
    assert len(centres(mask, found["both dogs"])) == 2
    assert "the dog" not in found
    mask = draw((DOG, 10, 10, 20, 20), (COW, 120, 60, 40, 30))
    assert len(centres(mask, texts(mask)["the cow and the dog"])) == 2


@pytest.mark.parametrize(
    ("boxes", "absent"),
    [
        ([(DOG, 10, 10, 20, 20), (DOG, 14, 50, 20, 20)], "left"),
        ([(DOG, 10, 10, 20, 20), (DOG, 60, 12, 20, 20)], "top"),
        ([(DOG, 10, 10, 20, 20), (DOG, 60, 12, 20, 24)], "largest"),
        ([(HAT, 10, 10, 20, 20), (HAT, 60, 12, 20, 24)], "hat"),
        ([(DOG, 10, 10, 9, 9), *((DOG, x, 90, 4, 4) for x in range(10, 190, 10))], "dog"),
        ([(DOG, 10, 10, 5, 5)], "dog"),
    ],
    ids=["one above the other", "side by side", "alike", "a garment in two pieces", "mostly specks", "too small"],
)
def test_what_is_in_doubt_is_not_said(boxes: list[tuple[int, int, int, int, int]], absent: str) -> None:
    assert not [said for said in texts(draw(*boxes)) if absent in said]


@pytest.mark.parametrize(("gap", "counted"), [(8, False), (14, True)])
def test_instances_on_both_sides_of_a_void_border_may_be_one(gap: int, counted: bool) -> None:
    mask = draw((DOG, 40, 40, 20, 20), (DOG, 60 + gap, 40, 20, 20))
    mask[35:65, 60 : 60 + gap] = UNKNOWN
    assert ("both dogs" in texts(mask)) is counted
    mask[mask == UNKNOWN] = GRASS  # grass between them: they are two
    assert "both dogs" in texts(mask)


def test_void_and_specks_are_unknown_in_the_label_map() -> None:
    mask = draw(LEFT, RIGHT, (DOG, 100, 90, 5, 5))
    mask[:, :4] = UNKNOWN
    mask[:10, 100:] = OTHER
    labels = target_map(mask, texts(mask)["the left dog"].parts)
    assert labels.shape == (1, *SIZE)
    assert labels.dtype == np.int16
    assert {int(value): int(count) for value, count in zip(*np.unique(labels, return_counts=True), strict=True)} == {
        UNKNOWN: 4 * 100 + 25,
        OTHER: 200 * 100 - 400 - 25 - 400,
        0: 400,
    }
    everything = target_map(mask, texts(mask)["both dogs"].parts)
    assert (everything == 0).sum() == 400 + 900 + 25


def test_nothing_is_meant_where_the_class_is_certainly_absent() -> None:
    found = {one.key: one for one in nothing_meant(draw(LEFT), CLASSES)}
    assert set(found) == {"no cow", "no hat", "no zebra", "no person"}
    assert "the zebra on the left" in found["no zebra"].texts
    assert "the two people" in found["no person"].texts
    assert not (target_map(draw(LEFT), found["no cow"].parts) == 0).any()
    assert [one.key for one in nothing_meant(draw(LEFT), ("grass", "dog", "bag", "purse"))] == ["no bag", "no purse"]
    mask = np.full(SIZE, 2, np.int16)
    assert [one.key for one in nothing_meant(mask, ("grass", "dog", "bag", "purse"))] == ["no dog"]  # a purse is a bag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "farm"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES, "background_index": None}))
    for i in range(12):
        Image.fromarray(draw(LEFT, MIDDLE, RIGHT).astype(np.uint8)).save(root / "masks" / f"{i}.png")
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "images" / f"{i}.jpg")
    (root / "train.txt").write_text("".join(f"{i}\n" for i in range(12)))
    (root / "val.txt").write_text("3\n4\n")
    return root


def test_a_source_of_records_that_follows_from_photo_and_seed(folder: Path) -> None:
    source: Source = Expressions(folder, "train", per_photo=3, nothing=0.5)
    records = [source[i] for i in range(len(source))]
    assert source.classes == ()
    assert len({record.image_id for record in records}) == len(records)
    assert all(record.texts and record.image_path and record.image_path.exists() for record in records)
    empty = [record for record in records if not (record.read() == 0).any()]
    assert 0 < len(empty) < 12
    assert len(records) == 36 + len(empty)
    again = Expressions(folder, "val", per_photo=3, nothing=0.5)
    kept = [record for record in records if record.image_id.split()[0] in ("3", "4")]
    assert [again[i].texts for i in range(len(again))] == [record.texts for record in kept]
    other = Expressions(folder, "train", per_photo=3, nothing=0.5, seed=1)
    assert [other[i].texts for i in range(len(other))] != [record.texts for record in records]


@pytest.mark.slow
def test_real_masks_give_expressions(shared_data: Path) -> None:
    source = Expressions(shared_data / "msrc", "val")
    assert len(source) > 200
    meant = [bool((source[i].read() == 0).any()) for i in range(0, len(source), 5)]
    assert 0.1 < 1 - np.mean(meant) < 0.5
