"""The halves of an answer and the ways to mend chunks, on a model that decides at random but always alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lab.paper.chunk_remedies import (
    CANDIDATE,
    ROWS,
    Redecided,
    candidates_again,
    equal_count,
    halves,
    masks_again,
    measure_remedies,
)
from lasagna import Lasagna
from training.data.sources.folder import Folder

NAMES = ["sky", "road", "cat", "dog", "tree", "car", "house", "boat"]
SIZE = 3


@pytest.fixture(scope="module")
def model() -> Lasagna:
    return Lasagna.random(3)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8))


def found(model: Lasagna, photo: Image.Image, chunk_size: int | None = None) -> Any:
    return model.segment(photo, NAMES, chunk_size=chunk_size)


def names(answer: Any) -> list[str]:
    return [one.name for one in answer.present]


def test_halves_are_of_the_lists_that_they_say(model: Lasagna, photo: Image.Image) -> None:
    whole, chunked = found(model, photo), found(model, photo, SIZE)
    assert names(whole) != names(chunked), "this model answers chunks otherwise, or the test sees nothing"
    for presence, masks, decided, drawn in ((None, SIZE, whole, chunked), (SIZE, None, chunked, whole)):
        mixed = found(Redecided(model, halves(presence, masks)), photo, SIZE)
        assert names(mixed) == names(decided)
        assert [one.probability for one in mixed.classes] == [one.probability for one in decided.classes]
        both = set(names(decided)) & set(names(drawn))
        assert both
        assert all(np.array_equal(mixed[name].mask, drawn[name].mask) for name in both)


def test_masks_again_change_no_decision(model: Lasagna, photo: Image.Image) -> None:
    options: dict[str, Any] = {"chunk_size": SIZE}
    options["threshold"] = float(np.median([one.probability for one in found(model, photo, SIZE).classes]))
    chunked, again = (asked.segment(photo, NAMES, **options) for asked in (model, Redecided(model, masks_again)))
    assert names(again) == names(chunked)
    assert 0 < len(names(chunked)) < len(NAMES)
    assert any(not np.array_equal(again[name].mask, chunked[name].mask) for name in names(chunked))


def test_candidates_are_chosen_by_chunks_and_decided_by_one_list(model: Lasagna, photo: Image.Image) -> None:
    chunked, again = found(model, photo, SIZE), found(Redecided(model, candidates_again), photo, SIZE)
    likely = sorted((one for one in chunked.classes if one.probability >= CANDIDATE), key=lambda one: -one.probability)
    asked = [name for name in NAMES if name in {one.name for one in likely[:SIZE]}]
    second = model.segment(photo, asked)
    assert names(again) == names(second)
    assert all(again[name].probability == second[name].probability for name in asked)


@pytest.mark.parametrize(
    ("reference", "other", "present"),
    [
        pytest.param([0.9, 0.6, 0.1, 0.2], [0.9, 0.8, 0.7, 0.3], 2, id="too many"),
        pytest.param([0.9, 0.6, 0.7, 0.2], [0.4, 0.3, 0.2, 0.1], 3, id="too few"),
        pytest.param([0.1, 0.2], [0.9, 0.8], 0, id="none"),
        pytest.param([0.6, 0.7], [0.3, 0.2], 2, id="all"),
    ],
)
def test_a_threshold_for_as_many(reference: list[float], other: list[float], present: int) -> None:
    threshold = equal_count(np.array(reference), np.array(other))
    assert 0 < threshold < 1
    assert (np.array(other) >= threshold).sum() == present


@pytest.mark.slow
def test_every_row_is_measured_on_real_photos(model: Lasagna, shared_data: Path) -> None:
    seen: list[None] = []
    rows = list(measure_remedies(model, Folder(shared_data / "msrc", "val"), 8, 2, lambda: seen.append(None)))
    assert len(rows) == ROWS
    assert len(seen) == 2 * ROWS
    assert len({row.name for row in rows}) == ROWS
    assert all(row.figures["images"] == 2 for row in rows)
