"""Expected edits and the score that orders tasks, on answers made by hand."""

import numpy as np
import pytest
import torch

from lasagna.assistant.drawing import mask_stability
from lasagna.assistant.lasagna import Lasagna
from lasagna.formats.record import record_to_segmentation, segmentation_to_record
from lasagna.masks.ordering import expected_edits, task_score
from lasagna.masks.segmentation import ClassAnswer, Segmentation

MASK = np.ones((2, 2), bool)


@pytest.mark.parametrize(
    ("answers", "edits"),
    [
        pytest.param([], 0.0, id="nothing asked"),
        pytest.param([ClassAnswer("a", 1.0, MASK, 1.0), ClassAnswer("b", 0.0, None)], 0.0, id="sure of everything"),
        pytest.param([ClassAnswer("a", 0.3, None)], 0.3, id="absent, added with its probability"),
        pytest.param([ClassAnswer("a", 0.8, MASK, 1.0)], 0.2, id="present, deleted with the rest"),
        pytest.param([ClassAnswer("a", 0.8, MASK, 0.5)], 0.2 + 0.4, id="and changed where the mask is unstable"),
        pytest.param([ClassAnswer("a", 0.8, MASK)], 0.2, id="stability unknown"),
    ],
)
def test_expected_edits(answers: list[ClassAnswer], edits: float) -> None:
    answer = Segmentation((2, 2), tuple(answers))
    assert expected_edits(answer) == pytest.approx(edits)
    assert task_score(answer) == pytest.approx(1 / (1 + edits))


@pytest.mark.parametrize(
    ("logits", "stability"),
    [
        pytest.param([[5.0, 5.0], [-5.0, -5.0]], 1.0, id="steep"),
        pytest.param([[5.0, 0.5], [-0.5, -5.0]], 1 / 3, id="flat"),
        pytest.param([[0.5, 0.5], [0.5, 0.5]], 0.0, id="no pixel is sure"),
        pytest.param([[-5.0, -5.0], [-5.0, -5.0]], 1.0, id="empty"),
    ],
)
def test_mask_stability(logits: list[list[float]], stability: float) -> None:
    assert mask_stability(torch.tensor([logits])).tolist() == pytest.approx([stability])


def test_present_classes_have_a_stability_that_a_record_keeps() -> None:
    model = Lasagna.random()
    answer = model.segment(np.full((40, 50, 3), 90, np.uint8), [*(f"{a}{b}" for a in "abcd" for b in "aeiou"), "ae"])
    assert answer.present
    assert answer.absent
    assert all(0 <= one.stability <= 1 for one in answer.present if one.stability is not None)
    assert [one.stability is None for one in answer.classes] == [not one.is_present for one in answer.classes]
    kept = record_to_segmentation(segmentation_to_record(answer))
    assert [one.stability for one in kept.classes] == [one.stability for one in answer.classes]
