"""What an order of tasks is judged by, on cases made by hand."""

from pathlib import Path

import numpy as np
import pytest

from lab.paper.review_order import (
    ORDERS,
    _first_quarter,
    _judge,
    mean_ordering,
    measure_orders,
    model_with_head,
    needed_edits,
)
from lasagna import Lasagna
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from training.data.records import OTHER, UNKNOWN
from training.data.sources.folder import Folder

LEFT = np.array([[True, False], [True, False]])
TRUTH = np.array([[[0, OTHER], [0, UNKNOWN]]], np.int16)


@pytest.mark.parametrize(
    ("masks", "edits"),
    [
        pytest.param((LEFT, None), 0, id="right"),
        pytest.param((LEFT | ~LEFT[::-1], None), 1, id="too large"),
        pytest.param((LEFT | np.array([[False, False], [False, True]]), None), 0, id="too large in void alone"),
        pytest.param((None, None), 1, id="missed"),
        pytest.param((LEFT, LEFT), 1, id="one too many"),
        pytest.param((None, LEFT), 2, id="the wrong class"),
    ],
)
def test_needed_edits(masks: tuple[np.ndarray | None, ...], edits: int) -> None:
    answers = (ClassAnswer(name, 0.5, mask) for name, mask in zip("ab", masks, strict=True))
    assert needed_edits(Segmentation((2, 2), tuple(answers)), TRUTH) == edits


def test_an_order_is_judged_by_the_work_that_it_finds_first() -> None:
    edits = np.array([4.0, 0, 0, 0, 3, 0, 0, 1])
    assert _first_quarter(edits, edits) == pytest.approx(7 / 8)
    assert _first_quarter(-edits, edits) == 0
    assert _first_quarter(edits[:6], edits[:6]) == pytest.approx((4 + 3 / 2) / 7)  # one and a half photos
    found = _judge(edits, edits)
    assert found.rank_correlation == pytest.approx(1)
    assert found.interval[0] <= found.first_quarter <= found.interval[1]
    assert _judge(np.zeros(8), edits).rank_correlation == 0


def test_every_order_is_measured_on_real_photos(shared_data: Path) -> None:
    edits, orders = measure_orders(Lasagna.random(), Folder(shared_data / "msrc", "val"), 6)
    assert 0 < edits <= 23
    assert list(orders) == list(ORDERS)


def test_a_head_is_learnt_before_photos_are_ordered_and_forgotten_after(shared_data: Path) -> None:
    model, train = Lasagna.random(), Folder(shared_data / "circuit", "train")
    model_with_head(model, train, 3, 0)
    assert model.head is not None
    assert model.head.decision.corrections == 3
    measured = measure_orders(model, Folder(shared_data / "circuit", "val"), 4)
    model_with_head(model, train, 2, 1)
    assert model.head is not None
    assert model.head.decision.corrections == 2
    edits, orders = mean_ordering([measured, (measured[0] + 2, measured[1])])
    assert edits == measured[0] + 1
    assert orders == measured[1]
