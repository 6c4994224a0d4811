"""`lasagna.instant.discriminant` against scikit-learn, and in the cases where a plain formula divides by nothing."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lasagna.errors import DataError
from lasagna.instant.discriminant import moments
from lasagna.instant.statistics import Statistics, collect


def pixels(seed: int = 0, count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.array([[0, 0, 1, 5], [2, 0, -1, 5], [0, 3, 0, 4]])
    mixing = rng.normal(size=(4, 4))
    features = centres[labels] + rng.normal(size=(count, 4)) @ mixing
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_lda_where_nothing_is_shrunk(seed):
    features, labels = pixels(seed)
    fitted = moments(collect(features, labels, ["a", "b", "c"])).solve(1e-6)
    scores = features @ fitted.weight.T + fitted.offsets(1.0)
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), labels.numpy())
    expected = reference.predict_log_proba(features.numpy())
    np.testing.assert_allclose(scores.log_softmax(1).numpy(), expected, atol=2e-2, rtol=2e-3)


def test_much_shrinkage_is_the_nearest_mean_in_standard_units():
    features, labels = pixels()
    fitted = moments(collect(features, labels, ["a", "b", "c"])).solve(1e5)
    scale = features.std(0, correction=0)
    means = torch.stack([features[labels == k].mean(0) for k in range(3)]) / scale
    nearest = torch.cdist(features / scale, means).argmin(1)
    said = (features @ fitted.weight.T + fitted.bias).argmax(1)
    assert (said == nearest).float().mean() > 0.99


def test_a_channel_that_does_not_vary_changes_nothing():
    features, labels = pixels()
    constant = torch.cat([features, torch.full((len(features), 1), 7.0)], 1)
    one, other = (moments(collect(f, labels, ["a", "b", "c"])).solve(0.3) for f in (features, constant))
    scores, with_constant = features @ one.weight.T + one.bias, constant @ other.weight.T + other.bias
    torch.testing.assert_close(scores, with_constant, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
def test_few_cells_and_many_channels_are_no_trouble(scale: float) -> None:
    """Far fewer cells than channels, of any size: S is singular, and rounding makes it indefinite."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(60, 200)) * scale * np.logspace(-3, 0, 200) + scale).float()
    labels = torch.from_numpy(rng.integers(0, 3, 60))
    fitted = moments(collect(features, labels, ["a", "b", "c"])).solve(0.1)
    assert torch.isfinite(features @ fitted.weight.T + fitted.offsets(0.5)).all()


def test_one_class_alone_scores_finitely():
    features, _ = pixels()
    fitted = moments(collect(features, torch.zeros(len(features), dtype=torch.long), ["a"])).solve(1.0)
    assert torch.isfinite(features @ fitted.weight.T + fitted.offsets(0.5)).all()


def test_without_pixels_it_is_refused():
    with pytest.raises(ValueError, match="labelled pixels"):
        moments(Statistics.empty(4))


def test_statistics_that_are_not_finite_end_in_words():
    features, labels = pixels()
    fitted = moments(collect(features, labels, ["a", "b", "c"]))
    fitted.within[0, 0] = float("nan")
    with pytest.raises(DataError, match="learn from the photos again"):
        fitted.solve(0.1)
