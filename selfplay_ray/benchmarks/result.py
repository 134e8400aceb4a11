"""What a benchmark reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self


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

    @classmethod
    def of_costs(
        cls,
        name: str,
        costs: Sequence[tuple[float, float]],
        unit: str,
        **detail: float | str,
    ) -> Self:
        """From what each repeat cost, ours and the baseline's, measured in turn; the less the better."""
        ratios = [theirs / ours for ours, theirs in costs]
        return cls(
            name=name,
            ratio=median(ratios),
            value=median(ours for ours, _ in costs),
            baseline=median(theirs for _, theirs in costs),
            unit=unit,
            spread=(max(ratios) - min(ratios)) / median(ratios),
            detail={**detail, "repeats": len(costs)},
        )
