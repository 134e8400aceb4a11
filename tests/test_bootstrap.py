"""Intervals against what can be worked out by hand, and the properties that any interval must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_ray import bootstrap
from selfplay_ray.bootstrap import Estimate, estimate_difference, estimate_mean

ROUNDING = 1e-9


def totals(*clusters: list[float]) -> np.ndarray:
    return np.array([[sum(values), len(values)] for values in clusters], dtype=np.float64)


def ones(values: list[float]) -> np.ndarray:
    """A cluster for each value."""
    return totals(*([value] for value in values))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)


values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)
several = st.lists(st.lists(st.floats(-10, 10), max_size=4), min_size=2, max_size=12).filter(
    lambda clusters: sum(map(bool, clusters)) >= 2
)


def test_the_mean_is_over_observations_and_not_over_clusters():
    # (1 + 1 + 1 + 0) / 4, not the mean of 1 and 0
    assert estimate_mean(totals([1, 1, 1], [0])).mean == 0.75


def test_two_clusters_by_hand():
    # Means of two draws from {0, 1}: 0 with probability 1/4, 0.5 with 1/2, 1 with 1/4.
    assert estimate_mean(ones([0, 1])) == Estimate(0.5, 0.0, 1.0, 2)


def test_yes_and_no_is_a_binomial():
    # 60 of 100: resampled sums are binomial(100, 0.6), whose 2.5 % and 97.5 % quantiles are 50 and 69.
    estimate = estimate_mean(ones([1] * 60 + [0] * 40))
    assert (estimate.mean, estimate.clusters) == (0.6, 100)
    assert estimate.low == pytest.approx(0.50, abs=0.011)
    assert estimate.high == pytest.approx(0.69, abs=0.011)


def test_observations_of_one_cluster_are_no_evidence_of_their_own():
    # Eight solvers of one question that all do as one: as uncertain as 20 observations, not as 160.
    single = estimate_mean(ones([0.0, 1.0] * 10))
    alike = estimate_mean(totals(*([value] * 8 for value in [0.0, 1.0] * 10)))
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high))
    spread = estimate_mean(ones([0.0, 1.0] * 80))
    assert alike.high - alike.low > 2.5 * (spread.high - spread.low)  # sqrt(8) = 2.8


def test_what_questions_have_in_common_cancels_in_a_paired_difference():
    # Questions differ by up to 10, the policies by 1 in each: the difference is 1 exactly.
    before = [float(value) for value in range(11)]
    after = [value + 1 for value in before]
    difference = estimate_difference(ones(before), ones(after))
    assert (difference.mean, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    assert estimate_mean(ones(after)).low < estimate_mean(ones(before)).high  # unpaired they overlap


def test_a_policy_against_itself_differs_by_nothing():
    same = totals([0.1, 0.7], [0.3], [], [0.9, 0.2, 0.2])
    assert estimate_difference(same, same) == Estimate(0.0, 0.0, 0.0, 3)


@pytest.mark.usefixtures("few_resamples")
@given(values)
@settings(max_examples=50)
def test_the_interval_holds_the_mean(observed: list[float]):
    estimate = estimate_mean(ones(observed))
    assert estimate.low - ROUNDING <= estimate.mean <= estimate.high + ROUNDING
    assert min(observed) - ROUNDING <= estimate.low <= estimate.high <= max(observed) + ROUNDING


@pytest.mark.usefixtures("few_resamples")
@given(several, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_clusters_makes_no_difference(clusters: list[list[float]], random):
    estimate = estimate_mean(totals(*clusters))
    random.shuffle(clusters)
    again = estimate_mean(totals(*clusters))
    assert (again.low, again.high, again.clusters) == (estimate.low, estimate.high, estimate.clusters)
    assert again.mean == pytest.approx(estimate.mean, abs=ROUNDING)


@pytest.mark.usefixtures("few_resamples")
@given(st.lists(st.integers(-5, 5), min_size=4, max_size=12).filter(lambda seen: len(set(seen)) > 2))
@settings(max_examples=30)
def test_nine_times_the_clusters_make_an_interval_of_about_a_third(observed: list[int]):
    once = estimate_mean(ones([float(value) for value in observed]))
    often = estimate_mean(ones([float(value) for value in observed * 9]))
    assert often.high - often.low < 0.6 * (once.high - once.low)
    assert often.mean == pytest.approx(once.mean)


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(("clusters", "expected"), [(8, 0.89), (60, 0.95)])
def test_as_many_intervals_hold_the_true_mean_as_is_claimed(clusters: int, expected: float):
    """500 samples: the share's own standard error is 0.014 and 0.010."""
    rng = np.random.default_rng(5)
    samples = [rng.normal(size=(clusters, 3)) + rng.normal(size=(clusters, 1)) for _ in range(500)]
    estimates = [estimate_mean(totals(*(list(row) for row in sample))) for sample in samples]
    share = sum(estimate.low <= 0 <= estimate.high for estimate in estimates) / len(estimates)
    assert share == pytest.approx(expected, abs=0.045)


def test_one_cluster_says_nothing_of_others():
    estimate = estimate_mean(totals([0.0, 1.0], []))
    assert (estimate.mean, estimate.clusters) == (0.5, 1)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_resamples_without_an_observation_are_left_out():
    estimate = estimate_mean(totals([2.0], [2.0], [], [], [], []))
    assert estimate == Estimate(2.0, 2.0, 2.0, 2)


def test_no_observation_has_no_mean():
    with pytest.raises(ValueError, match="nothing to take a mean of"):
        estimate_mean(totals([], []))


def test_unequal_numbers_of_clusters_are_no_pairs():
    with pytest.raises(ValueError, match="2 clusters can't be compared with 3"):
        estimate_difference(ones([1, 2]), ones([1, 2, 3]))


def test_memory_is_bounded_and_the_result_the_same(monkeypatch: pytest.MonkeyPatch):
    observed = totals([1.0, 0.0], [3.0], [2.0, 2.5])
    whole = estimate_mean(observed)
    monkeypatch.setattr(bootstrap, "CELLS", 7 * 3)
    in_blocks = estimate_mean(observed)
    assert (in_blocks.low, in_blocks.high) == (whole.low, whole.high)
