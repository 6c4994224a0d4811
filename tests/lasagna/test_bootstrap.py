"""The bootstrap: seeded, and as wide as theory says."""

import numpy as np
import pytest

from lasagna.bootstrap import bootstrap_counts, percentile_interval


def test_draws_are_of_the_same_size_and_seeded() -> None:
    counts = bootstrap_counts(7, 50, seed=3)
    assert counts.shape == (50, 7)
    assert (counts.sum(1) == 7).all()
    assert (counts == bootstrap_counts(7, 50, seed=3)).all()
    assert (counts != bootstrap_counts(7, 50, seed=4)).any()


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = percentile_interval(bootstrap_counts(400, 4000) @ values / 400, 0.95)
    assert found is not None
    half = 1.96 * values.std() / 20
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_undefined_figures_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, 1.0]), 0.9) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan]), 0.9) is None


@pytest.mark.parametrize(("items", "resamples"), [(0, 5), (5, 0)])
def test_nothing_to_draw(items: int, resamples: int) -> None:
    with pytest.raises(ValueError, match="needs items and draws"):
        bootstrap_counts(items, resamples)
