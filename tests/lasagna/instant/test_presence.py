"""`lasagna.instant.presence`, `stacking`, `tally` and `painting`: the formulas, and their edges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lasagna.instant.painting import paint, stability
from lasagna.instant.presence import (
    class_logits,
    default_presence,
    fit_presence,
    map_features,
    sample_features,
)
from lasagna.instant.stacking import CANDIDATES, HEAD, Stacking, combine, head_log, model_log
from lasagna.instant.tally import Tally, tally
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from training.data.records import OTHER
from training.evaluation.metrics import SegmentationMetrics
from training.evaluation.scoring import score_photo


def answers(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 4)) * [3, 1, 2, 0.5] + [1, -4, 0, 2]
    chance = 1 / (1 + np.exp(-(features @ [0.5, 0.3, -0.2, 1] - 1)))
    return features, rng.random(count) < chance


def test_it_is_a_logistic_regression() -> None:
    features, truth = answers(0)
    fitted = fit_presence(features, truth, np.ones(len(truth)))
    standard = (features - fitted.center) / fitted.scale
    reference = LogisticRegression(C=1.0, tol=1e-8).fit(standard, truth)
    np.testing.assert_allclose(fitted.weight, reference.coef_[0], atol=1e-3)
    np.testing.assert_allclose(fitted.bias, reference.intercept_[0], atol=1e-3)


def test_refining_goes_to_the_answers_with_their_number() -> None:
    start = default_presence(False)
    features, truth = answers(1, 2000)
    free = fit_presence(features, truth, np.ones(len(truth))).probability(features)
    distances = [
        np.abs(start.refine(features[:n], truth[:n]).probability(features) - free).mean() for n in (1, 50, 2000)
    ]
    assert distances[0] > distances[1] > distances[2]
    np.testing.assert_allclose(start.refine(features[:0], truth[:0]).weight, start.weight)


def test_few_answers_correct_heads_that_are_too_sure() -> None:
    """Heads of few photos say much the same of what is there and what is not, only louder: the constant moves first."""
    start = default_presence(False)
    features, truth = answers(3, 60)
    features = features + 0.8 * start.scale
    before, after = start.probability(features), start.refine(features, truth).probability(features)
    wanted = truth.mean()
    assert before.mean() > wanted + 0.1
    assert abs(after.mean() - wanted) < 0.3 * abs(before.mean() - wanted)
    slow = start.refine(features, truth, ridge_bias=30.0).probability(features)
    assert slow.mean() > after.mean()


@pytest.mark.parametrize("with_model", [False, True])
def test_the_shipped_weights_know_a_class_that_is_there(with_model: bool) -> None:
    presence = default_presence(with_model)
    sure, unsure = [6.0, 3.0, 0.0, -1.5], [-6.0, -9.0, -11.0, -11.0]
    if with_model:
        sure, unsure = [*sure, 3.0], [*unsure, -5.0]
    assert presence.probability(np.array(sure)) > 0.5
    assert presence.probability(np.array(unsure)) < 0.5


def test_samples_tell_what_the_map_tells() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 20_000) * 5
    np.testing.assert_allclose(sample_features(scores, torch.ones(20_000)), map_features(scores), atol=0.4)
    # A sample that stands for many cells counts as they do.
    few = sample_features(torch.tensor([[2.0, -2.0], [0.0, 0.0]]), torch.tensor([1.0, 999.0]))
    many = torch.cat([torch.tensor([[2.0], [0.0]]), torch.tensor([[-2.0], [0.0]]).expand(2, 999)], 1)
    np.testing.assert_allclose(few, sample_features(many, torch.ones(1000)), rtol=1e-4)


@given(st.lists(st.floats(-300, 300, width=32), min_size=2, max_size=5))
@settings(deadline=None)
def test_logits_are_exact_where_probabilities_round_to_one(values) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    others = torch.stack([torch.cat([scores[:i], scores[i + 1 :]]).logsumexp(0) for i in range(len(scores))])
    torch.testing.assert_close(
        class_logits(scores[:, None].float())[:, 0].double(), scores - others, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("cells", [300, 9000], ids=["every cell", "thinned"])
def test_some_classes_have_the_features_that_they_have_among_all(cells: int) -> None:
    """By the definition of the features: quantiles and means by torch."""
    scores = torch.randn(7, cells, generator=torch.Generator().manual_seed(1)) * 8
    rows = torch.tensor([5, 0, 5, 3])
    found = map_features(scores, rows)
    np.testing.assert_allclose(found, map_features(scores)[rows.numpy()], rtol=1e-6)
    logits, thin = class_logits(scores)[rows], class_logits(scores)[rows][:, :: max(1, cells // 4096)]
    for column, (share, values) in enumerate(((0.001, logits), (0.02, thin), (0.1, thin))):
        value = values.sort(1, descending=True).values[:, max(1, round(share * values.shape[1])) - 1]
        np.testing.assert_allclose(found[:, column], 4 * np.arcsinh(value.double().numpy() / 4), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3], scores.softmax(0).mean(1)[rows].clamp_min(1e-6).log(), rtol=1e-4)


def test_one_class_alone_is_sure() -> None:
    assert np.isfinite(map_features(torch.zeros(1, 50))).all()
    assert (map_features(torch.zeros(1, 50))[:, :3] > 10).all()


logits = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)


@given(logits, logits, st.sampled_from(CANDIDATES))
@settings(deadline=None)
def test_stacks_rank_classes_by_their_probabilities(model, head, stacking) -> None:
    """Against the definition, in double precision."""
    m, h = (torch.tensor(each, dtype=torch.float64)[:, None].log_softmax(0) for each in (model, head))
    found = combine(stacking, m, h)[:, 0].log_softmax(0).exp()
    if stacking.kind == "head":
        expected = h.exp()
    elif stacking.kind == "product":
        expected = (m + stacking.weight * h.clamp_min(-30)).softmax(0)
    else:
        expected = (1 - stacking.weight) * m.exp() + stacking.weight * h.exp()
    torch.testing.assert_close(found, expected[:, 0], atol=1e-5, rtol=1e-4)


def test_unseen_classes_share_what_is_unseen() -> None:
    scores = torch.randn(5, 7)
    seen = torch.tensor([True, False, True, False, True])
    p = head_log(scores, seen, 0.2).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(7))
    torch.testing.assert_close(p[[1, 3]], torch.full((2, 7), 0.1))
    torch.testing.assert_close(head_log(scores, torch.ones(5, dtype=torch.bool), 0.2), scores.log_softmax(0))
    throughout = head_log(scores, torch.tensor([True, True, True, True, False]), 0.2)
    assert (throughout[-1] == -torch.inf).all()
    nothing = head_log(scores, torch.zeros(5, dtype=torch.bool), 0.2)
    assert torch.isfinite(nothing).all()


def test_the_model_says_none_where_no_mask_is() -> None:
    log = model_log(torch.tensor([0.9, 0.6]), torch.tensor([[5.0, -9.0], [-9.0, -9.0]]))
    assert log.argmax(0).tolist() == [0, 2]
    assert model_log(torch.zeros(0), torch.zeros(0, 3, 4)).shape == (1, 3, 4)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
@settings(deadline=None)
def test_tallies_give_the_figures_of_the_evaluation(seed, classes, photos) -> None:
    rng = np.random.default_rng(seed)
    metrics, tallies = SegmentationMetrics(classes), []
    for _ in range(photos):
        truth, said = (rng.integers(0, classes + 1, 30) for _ in range(2))
        labels = np.where(truth == classes, OTHER, truth).astype(np.int16).reshape(1, 5, 6)
        drawn = [ClassAnswer(str(i), 0.5, (said == i).reshape(5, 6)) for i in range(classes)]
        metrics.update(score_photo(labels, Segmentation((5, 6), tuple(drawn))))
        tallies.append(tally(truth, said, np.ones(30), classes))
    every = Tally.of(tallies)
    found = every.miou()[0]
    assert (metrics.miou is None and np.isnan(found)) or found == pytest.approx(metrics.miou)
    assert every.accuracy.mean() == pytest.approx(metrics.pixel_accuracy)
    draws = rng.integers(0, 3, (4, photos)).astype(float)
    for draw, value in zip(draws, every.miou(draws), strict=True):
        drawn = [each for each, times in zip(tallies, draw, strict=True) for _ in range(int(times))]
        expected = Tally.of(drawn).miou()[0] if drawn else np.nan
        assert value == pytest.approx(expected, nan_ok=True)


def halves() -> tuple[torch.Tensor, np.ndarray]:
    """A photo that is dark on the left of column 30, and scores that say so roughly, on a grid of stride 4."""
    image = np.full((40, 64), 200, np.uint8)
    image[:, :30] = 40
    scores = torch.full((3, 10, 16), -4.0)
    scores[0, :, :8] = 0.0
    scores[2, :, 8:] = 0.0
    return scores, image


def test_edges_go_to_the_photos() -> None:
    scores, image = halves()
    masks = paint(scores, image, (40, 64), (40, 64))
    assert [mask.shape for mask in masks] == [(40, 64)] * 2
    assert not masks[1].any()
    assert masks[0][:, :30].all()
    assert masks[0][:, 31:].mean() < 0.03  # bilinear alone would end at column 32


def test_masks_exclude_one_another() -> None:
    torch.manual_seed(0)
    masks = paint(torch.randn(6, 10, 16) * 3, np.full((39, 61), 99, np.uint8), (40, 64), (40, 64))
    assert np.sum(masks, axis=0).max() == 1


def test_padding_is_cut_off() -> None:
    scores = torch.zeros(2, 16, 16)
    scores[0, :8, :] = 5  # the photo is the upper half of the input
    masks = paint(scores, np.full((100, 200), 99, np.uint8), (64, 64), (32, 64))
    assert masks[0][:95].all()


@pytest.mark.slow
def test_large_photos_are_filtered_on_a_smaller_copy() -> None:
    scores, image = halves()
    large = image.repeat(40, 0).repeat(40, 1)
    mask = paint(scores, large, (40, 64), (40, 64))[0]
    assert mask.shape == (1600, 2560)
    assert mask[:, :1180].mean() > 0.99
    assert mask[:, 1300:].mean() < 0.01


def test_no_class_competes() -> None:
    assert paint(torch.zeros(1, 4, 4), np.zeros((16, 16), np.uint8), (16, 16), (16, 16)) == []
    assert stability(torch.zeros(1, 4, 4)).tolist() == []


def test_stability_is_high_where_the_border_is_sharp() -> None:
    sharp, soft = torch.zeros(2, 4, 8), torch.zeros(2, 4, 8)
    sharp[0, :, :4], sharp[0, :, 4:] = 9, -9
    soft[0] = torch.linspace(2, -2, 8)
    values = [stability(scores).item() for scores in (sharp, soft)]
    assert values[0] == 1.0 > values[1]


def test_stackings_name_themselves() -> None:
    assert str(HEAD) == "head"
    assert str(Stacking("product", 0.25)) == "product 0.25"
