"""`group_fork`: sixteen samples of one prompt, forked from one prefill, against sixteen requests on their own."""

from __future__ import annotations

import asyncio
import statistics
import time

from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import GenerationRequest
from selfplay_ray.seeds import derive_rng

MODEL = "smollm2-135m"
SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 16, 200, 16
ORDINARY_TOKENS = range(100, 40_000)


def run(repeats: int) -> BenchmarkResult:
    """Seconds for one group on the engine, forked and unforked in turn, on the real model."""
    with Engine(MODEL) as forked, Engine(MODEL, fork=False) as plain:
        for engine in (forked, plain):  # the first group pays for what is allocated and compiled once
            _seconds(engine, round_=-1)
        times = [(_seconds(plain, number), _seconds(forked, number)) for number in range(repeats)]
    ratios = [slow / fast for slow, fast in times]
    return BenchmarkResult(
        name="group_fork",
        ratio=statistics.median(ratios),
        value=statistics.median(fast for _, fast in times),
        baseline=statistics.median(slow for slow, _ in times),
        unit="s",
        spread=(max(ratios) - min(ratios)) / statistics.median(ratios),
        detail={
            "model": MODEL,
            "samples": SAMPLES,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "repeats": repeats,
        },
    )


def _seconds(engine: Engine, round_: int) -> float:
    """How long ``engine`` takes for a group whose prompt it has never seen."""
    rng = derive_rng(0, "group_fork", round_)
    prompt = tuple(rng.choices(ORDINARY_TOKENS, k=PROMPT_TOKENS))
    requests = [GenerationRequest(f"sample{i}", prompt, NEW_TOKENS, 1.0, seed=i) for i in range(SAMPLES)]

    async def group() -> None:
        await asyncio.gather(*[engine.generate(request) for request in requests])

    started = time.perf_counter()
    asyncio.run(group())
    return time.perf_counter() - started
