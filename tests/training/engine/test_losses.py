"""The objective against numbers worked out by hand; void counts nowhere."""

import math

import pytest
import torch

from training.engine.losses import competition_loss, mask_losses

ON, OFF = 20.0, -20.0


def test_a_perfect_mask_costs_nothing() -> None:
    target = torch.tensor([[[True, False], [True, False]]])
    logits = torch.where(target, ON, OFF)
    bce, dice = mask_losses(logits, target, torch.ones_like(target))
    assert bce.item() == pytest.approx(0, abs=1e-6)
    assert dice.item() == pytest.approx(0, abs=1e-6)


def test_values_by_hand() -> None:
    target = torch.tensor([[[True, False]]])
    bce, dice = mask_losses(torch.zeros(1, 1, 2), target, torch.ones_like(target))
    assert bce.item() == pytest.approx(math.log(2))
    assert dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))


def test_void_pixels_do_not_count() -> None:
    target = torch.tensor([[[True, False, True]]])
    known = torch.tensor([[[True, True, False]]])
    right = torch.tensor([[[ON, OFF, OFF]]])
    bce, dice = mask_losses(right, target, known)
    assert bce.item() == pytest.approx(0, abs=1e-6)
    assert dice.item() == pytest.approx(0, abs=1e-6)
    nothing = mask_losses(right, target, torch.zeros_like(known))
    assert all(torch.isfinite(term).all() for term in nothing)


def test_each_mask_counts_the_same() -> None:
    """A tiny and a large mask, both missed: the same DICE but for the smoothing."""
    target = torch.zeros(2, 20, 20, dtype=torch.bool)
    target[0, :4, :4] = True
    target[1] = True
    _, dice = mask_losses(torch.full((2, 20, 20), OFF), target, torch.ones_like(target))
    assert dice.min() > 0.9


def test_competition_prefers_the_right_class() -> None:
    labels = torch.tensor([[0, 1, -1, -2]])
    right = torch.tensor([[[ON, OFF, OFF, ON]], [[OFF, ON, OFF, ON]]])
    assert competition_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert competition_loss(torch.zeros(2, 1, 4), labels).item() == pytest.approx(math.log(3))
    assert competition_loss(right.flip(0), labels).item() > 5


def test_competition_where_everything_is_void() -> None:
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    loss = competition_loss(logits, torch.full((1, 3), -2))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_a_thin_class_weighs_more_than_its_pixels_in_the_competition() -> None:
    """One pixel of class 1 against nine of class 0: weights 1 and 1/3 a pixel, 1 and 3 in all."""
    labels = torch.tensor([[0] * 9 + [1]])
    all_first = torch.tensor([[[ON] * 10], [[OFF] * 10]])
    assert competition_loss(all_first, labels).item() == pytest.approx((ON - OFF) / 4)
