"""How sure a mean is: bootstrap intervals for observations that come in independent clusters.

What is told of a policy is a mean over rollouts, and rollouts of one tree are alike: they answer one question. So
whole clusters are drawn again, with replacement, and never single observations: the "cluster bootstrap" of Field &
Welsh 2007, Bootstrapping clustered data, J. R. Statist. Soc. B 69, 369-390. The interval's ends are percentiles of the
means that come out (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).
Clusters are of different sizes, so the mean is a ratio, sum over count, and both are drawn again.

A percentile interval is too narrow where clusters are few: it is about 1.96 sqrt((n - 1) / n) standard errors wide
each way where Student's t would have it wider, so that of 95 % intervals for the mean of n normal observations 95 %
hold it with n = 100, 94 % with 30, 92 % with 16, 89 % with 8. And where all n are alike it has no width at all, when
what n observations never showed may well be as frequent as 3 / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
"""Fixed, so that the same observations have the same interval."""
FEW_CLUSTERS = 30
"""With fewer, say that the interval is somewhat too narrow."""
CELLS = 2**22
"""Of resampling weights held at once."""

Totals = np.ndarray
"""float64[clusters, 2]: the sum of a cluster's observations, and how many there are."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean (or a difference of means) and the ends of its 95 % interval, from ``clusters`` that had observations.

    The ends of an interval from one cluster, which says nothing of others, are NaN.
    """

    mean: float
    low: float
    high: float
    clusters: int


def estimate_mean(totals: Totals) -> Estimate:
    """The mean over all observations, sum over count.

    Raises:
        ValueError: there is no observation.
    """
    means = _ratio(_resample(totals))
    return _estimate(float(_ratio(totals.sum(axis=0))), means, totals[:, 1] > 0)


def estimate_difference(before: Totals, after: Totals) -> Estimate:
    """The mean after minus the mean before, cluster for cluster of the same questions.

    Each resample takes the same clusters of both, so that what makes a question hard for both doesn't count as
    chance.

    Raises:
        ValueError: the clusters aren't as many, or one of the two has no observation.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} clusters can't be compared with {len(after)}, one by one")
    both = _resample(np.hstack([before, after]))
    differences = _ratio(both[:, 2:]) - _ratio(both[:, :2])
    mean = float(_ratio(after.sum(axis=0)) - _ratio(before.sum(axis=0)))
    return _estimate(mean, differences, (before[:, 1] > 0) & (after[:, 1] > 0))


def _estimate(mean: float, resampled: np.ndarray, counted: np.ndarray) -> Estimate:
    """NaNs among the ``resampled`` are of resamples without an observation."""
    if math.isnan(mean):
        raise ValueError("there is nothing to take a mean of")
    clusters = int(counted.sum())
    if clusters < 2:
        return Estimate(mean, math.nan, math.nan, clusters)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled[~np.isnan(resampled)], [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), clusters)


def _resample(columns: np.ndarray) -> np.ndarray:
    """The columns' sums over clusters drawn again: float64[RESAMPLES, columns]. Their order makes no difference."""
    rng = np.random.default_rng(SEED)
    clusters = len(columns)
    ordered = columns[np.lexsort(columns.T)]
    block = max(1, CELLS // clusters)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    each = np.full(clusters, 1 / clusters)
    return np.concatenate([rng.multinomial(clusters, each, size=size) @ ordered for size in sizes])


def _ratio(totals: np.ndarray) -> np.ndarray:
    """Sum over count, NaN where there is none."""
    with np.errstate(invalid="ignore"):
        ratio: np.ndarray = totals[..., 0] / totals[..., 1]
    return ratio
