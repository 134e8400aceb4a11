"""What a benchmark reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One benchmark against the baseline measured in the same run; medians over its repeats.

    ``ratio`` is how many times better than the baseline, above 1 for an improvement whichever way the unit runs.
    ``spread`` is (largest - smallest) / median of the repeats' ratios.
    ``detail`` holds what else is worth knowing: sizes, settings, single times.
    """

    name: str
    ratio: float
    value: float
    baseline: float
    unit: str
    spread: float
    detail: Mapping[str, float | int | str]
