"""cIoU, gIoU, N-acc and T-acc: cases worked out by hand, and pycocotools' IoU of single masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.text_metrics import TextMetrics


def mask(*on: int, size: int = 10) -> np.ndarray:
    """One row of pixels."""
    found = np.zeros((1, size), bool)
    found[0, list(on)] = True
    return found


def test_referring_by_hand() -> None:
    metrics = TextMetrics()
    metrics.update(mask(0, 1, 2, 3, 4, 5), mask(0, 1, 2, 3, 4, 5, 6, 7))  # 6 of 8
    metrics.update(mask(0), mask(1))  # 0 of 2
    assert metrics.ciou == pytest.approx(6 / 10)  # the larger target weighs more
    assert metrics.giou == pytest.approx((6 / 8 + 0) / 2)
    assert (metrics.no_target_accuracy, metrics.target_accuracy) == (None, 1.0)
    assert [metrics.precision_at(iou) for iou in (0.5, 0.75, 0.9)] == [0.5, 0.5, 0.0]


def test_generalised_by_hand() -> None:
    metrics = TextMetrics()
    metrics.update(mask(0, 1), mask(0, 1))  # right
    metrics.update(mask(2, 3, 4, 5), mask())  # missed: its union is the target
    metrics.update(mask(), mask())  # rightly nothing: gIoU 1, and nothing in cIoU
    metrics.update(mask(), mask(1, 2, 3))  # invented: gIoU 0, and its pixels are in cIoU's union
    metrics.update(mask(), mask(9))
    assert metrics.ciou == pytest.approx(2 / (2 + 4 + 0 + 3 + 1))
    assert metrics.giou == pytest.approx((1 + 0 + 1 + 0 + 0) / 5)
    assert metrics.no_target_accuracy == pytest.approx(1 / 3)
    assert metrics.target_accuracy == pytest.approx(1 / 2)
    figures = metrics.as_dict()
    assert (figures["samples"], figures["without_target"]) == (5, 3)
    assert figures["precision_at_0.5"] == 1 / 2  # of the samples with a target


def test_void_counts_nowhere_but_an_answer_in_void_is_an_answer() -> None:
    metrics = TextMetrics()
    known = ~mask(0, 1)
    metrics.update(mask(0, 2), mask(1, 2), known)
    assert (metrics.ciou, metrics.giou) == (1.0, 1.0)
    metrics.update(mask(), mask(0), known)
    assert metrics.no_target_accuracy == 0.0
    assert metrics.ciou == 1.0


def test_nothing_to_score() -> None:
    metrics = TextMetrics()
    assert (metrics.ciou, metrics.giou, metrics.target_accuracy) == (None, None, None)
    metrics.update(mask(), mask())
    assert (metrics.ciou, metrics.giou, metrics.no_target_accuracy) == (None, 1.0, 1.0)
    with pytest.raises(ValueError, match="one size"):
        metrics.update(mask(), mask(size=9))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_the_iou_of_one_sample_is_that_of_pycocotools(seed: int) -> None:
    from pycocotools import mask as coco

    rng = np.random.default_rng(seed)
    truth, prediction = rng.random((2, 9, 7)) < rng.uniform(0.1, 0.9)
    truth[0, 0] = True
    metrics = TextMetrics()
    metrics.update(truth, prediction)
    encoded = [coco.encode(np.asfortranarray(one, np.uint8)) for one in (prediction, truth)]
    expected = float(coco.iou(encoded[:1], encoded[1:], [0])[0, 0])
    assert metrics.giou == pytest.approx(expected)
    assert metrics.ciou == pytest.approx(expected)
