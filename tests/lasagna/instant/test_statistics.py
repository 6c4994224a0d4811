"""Statistics of corrections add, go, and leave no trace: property tests of `lasagna.instant.statistics`."""

import itertools
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lasagna.instant.discriminant import moments
from lasagna.instant.features import BOUND
from lasagna.instant.statistics import UNDECIDED, Statistics, collect

NAMES = ("b", "", "a", "ü, c")


def photo(seed: int, channels: int = 5, scale: float = 3.0, undecided: float = 0.1) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(int(rng.integers(1, 400)), channels)) * scale).float()
    labels = rng.integers(0, int(rng.integers(1, len(NAMES) + 1)), len(features))
    labels[rng.random(len(features)) < undecided] = UNDECIDED
    return features.clamp(-BOUND, BOUND), torch.from_numpy(labels)


def statistics_of(seed: int, scale: float = 3.0) -> Statistics:
    return collect(*photo(seed, scale=scale), NAMES)


def same(one: Statistics, other: Statistics) -> bool:
    """To the last bit."""
    return (
        one.names == other.names
        and torch.equal(one.counts, other.counts)
        and torch.equal(one.sums, other.sums)
        and torch.equal(one.moment, other.moment)
    )


seeds = st.lists(st.integers(0, 10_000), min_size=1, max_size=8, unique=True)
scales = st.sampled_from([0.001, 1.0, 30.0])


@pytest.mark.slow
@given(seeds, scales, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_corrections_leaves_no_trace(chosen, scale, random):
    shuffled = list(chosen)
    random.shuffle(shuffled)
    sums = [reduce(Statistics.__add__, (statistics_of(s, scale) for s in order)) for order in (chosen, shuffled)]
    assert same(*sums)


@given(seeds, scales, st.integers(0, 10_000))
@settings(deadline=None)
def test_what_is_added_and_taken_away_leaves_no_trace(chosen, scale, extra):
    empty = Statistics.empty(5)
    total = sum((statistics_of(s, scale) for s in chosen), empty)
    other = statistics_of(extra, scale)
    assert same(total + other - other, total)
    assert same(total - total, empty)


@pytest.mark.slow
@given(seeds, st.integers(0, 8))
@settings(deadline=None)
def test_two_machines_add_up(chosen, cut):
    empty = Statistics.empty(5)
    parts = [sum((statistics_of(s) for s in part), empty) for part in (chosen[:cut], chosen[cut:])]
    assert same(parts[0] + parts[1], sum((statistics_of(s) for s in chosen), empty))


@pytest.mark.slow
@given(seeds)
@settings(deadline=None)
def test_removing_and_adding_again_gives_the_same_weights(chosen):
    total = sum((statistics_of(s) for s in chosen), Statistics.empty(5))
    if not total.pixels:
        return
    again = total - statistics_of(chosen[0]) + statistics_of(chosen[0])
    one, other = (moments(each).solve(1.0) for each in (total, again))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.bias, other.bias, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10_000), scales)
@settings(deadline=None)
def test_they_are_the_counts_sums_and_second_moment(seed, scale):
    features, labels = photo(seed, scale=scale)
    found = collect(features, labels, NAMES)
    kept = labels != UNDECIDED
    x, y = features[kept].double(), labels[kept]
    for name, count, total in zip(found.names, found.counts, found.sums, strict=True):
        own = x[y == NAMES.index(name)]
        assert count == len(own) > 0
        torch.testing.assert_close(total, own.sum(0), rtol=1e-6, atol=1e-3)
    size = float(x.square().sum()) + 1
    torch.testing.assert_close(found.full_moment(), x.T @ x, rtol=1e-5, atol=1e-6 * size + 1e-4)


@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_undecided_pixels_leave_no_trace(seed):
    features, labels = photo(seed, undecided=0.4)
    changed = features.clone()
    changed[labels == UNDECIDED] = 77.0
    assert same(collect(features, labels, NAMES), collect(changed, labels, NAMES))
    kept = labels != UNDECIDED
    assert same(collect(features, labels, NAMES), collect(features[kept], labels[kept], NAMES))


def test_sums_of_500_large_photos_are_exact():
    """A mean square of 1000 in every cell: the docstring's arithmetic."""
    one = collect(torch.full((2**14, 3), 1000**0.5), torch.zeros(2**14, dtype=torch.long), NAMES)
    jitter = collect(torch.full((1, 3), 0.01), torch.zeros(1, dtype=torch.long), NAMES)
    total = jitter
    for _ in range(500):
        total = total + one
    for _ in range(500):
        total = total - one
    assert same(total, jitter)


def test_names_may_be_given_in_any_order():
    features, labels = photo(3)
    for order in itertools.permutations(range(len(NAMES))):
        place = torch.tensor([order.index(i) for i in range(len(NAMES))])
        moved = torch.where(labels == UNDECIDED, labels, place[labels.clamp(min=0)])
        assert same(collect(features, labels, NAMES), collect(features, moved, [NAMES[i] for i in order]))


def test_taking_away_what_was_not_added_is_refused():
    with pytest.raises(ValueError, match="had not been added"):
        Statistics.empty(5) - statistics_of(1)
    with pytest.raises(ValueError, match="5 and of 4 channels"):
        statistics_of(1) + Statistics.empty(4)
