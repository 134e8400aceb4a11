"""`group_fork`: sixteen samples of one prompt, forked from one prefill, against sixteen requests on their own."""

from __future__ import annotations

from selfplay_ray.benchmarks.load import MODEL, new_tokens, request, seconds
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine

SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 16, 200, 16


def run(repeats: int) -> BenchmarkResult:
    """Seconds for one group on the engine, forked and unforked in turn, on the real model."""
    with Engine(MODEL) as forked, Engine(MODEL, fork=False) as plain:
        costs = [
            (_seconds(forked, number), _seconds(plain, number))
            for number in range(repeats + 1)  # the first pays for what is allocated and compiled once
        ]
    return BenchmarkResult.of_costs(
        "group_fork",
        costs[1:],
        "s",
        model=MODEL,
        samples=SAMPLES,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )


def _seconds(engine: Engine, number: int) -> float:
    """How long ``engine`` takes for a group whose prompt it has never seen."""
    prompt = new_tokens(PROMPT_TOKENS, "group_fork", number)
    return seconds(engine, [request(prompt, NEW_TOKENS, seed) for seed in range(SAMPLES)])
