"""Does a training step cost what its distinct tokens cost? Steps of one to sixteen groups, on a straight line.

The baseline is a token's price in the smallest step. A ratio below 1 would say that a token of a large step costs
more than one of a small step; it is somewhat above 1, because a step has costs of its own.
"""

from __future__ import annotations

from statistics import median

import mlx.core as mx
import numpy as np

from selfplay_ray.benchmarks.load import MODEL
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.benchmarks.training_load import (
    VOCABULARY,
    make_record,
    measure,
    noisy_trainer,
    random_tokens,
)
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.types import TrainingRecord

GROUPS = (1, 2, 4, 8, 16)
SAMPLES, PROMPT, COMPLETION = 4, 64, 16
BUDGET = 512


def run(repeats: int) -> BenchmarkResult:
    """CPU milliseconds for a distinct token of a step, at sixteen groups against one, after a warm-up."""
    trainer = noisy_trainer()
    plans = [plan_step(groups(count), BUDGET, VOCABULARY) for count in GROUPS]
    loss = StepLoss(trainer.objective)

    def seconds(index: int) -> float:
        def compute() -> dict[str, mx.array]:
            return step_gradient(trainer.model, plans[index].batches, loss, trainer.forward).gradients

        return measure(compute)[0]

    seconds(0)  # warm-up
    measured = [[seconds(index) for index in range(len(plans))] for _ in range(repeats)]
    tokens = [plan.distinct_tokens for plan in plans]
    typical = [median(column) for column in zip(*measured, strict=True)]
    slope, intercept, r_squared = fit_line(tokens, typical)
    return BenchmarkResult.of_costs(
        "distinct_tokens",
        [(row[-1] / tokens[-1] * 1e3, row[0] / tokens[0] * 1e3) for row in measured],
        "CPU ms a token",
        model=MODEL,
        fewest_tokens=tokens[0],
        most_tokens=tokens[-1],
        r_squared=r_squared,
        line=f"{intercept:.2f} s + {slope * 1e3:.2f} ms a token",
        seconds=", ".join(f"{value:.2f}" for value in typical),
    )


def groups(count: int) -> list[TrainingRecord]:
    """So many groups, each of four samples of one prompt."""
    rng = np.random.default_rng(0)
    prompts = [random_tokens(rng, PROMPT) for _ in range(count)]
    return [
        make_record(f"{group}/{sample}", prompt, random_tokens(rng, COMPLETION), float(rng.normal()))
        for group, prompt in enumerate(prompts)
        for sample in range(SAMPLES)
    ]


def fit_line(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """Least squares: slope, intercept, and the share of the variance of ``y`` that the line explains."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.array(y) - (slope * np.array(x) + intercept)
    return float(slope), float(intercept), float(1 - rest.var() / np.var(y))
