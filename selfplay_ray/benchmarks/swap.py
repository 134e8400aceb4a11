"""`swap`: decoding while the adapter's weights change every ten steps, against decoding undisturbed.

Nothing may be dropped and nobody who decodes may begin again; the benchmark fails if it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np

from selfplay_ray.benchmarks.load import MODEL, Tokens, new_tokens, request, together
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings

Weights = Mapping[str, np.ndarray]

ROWS, PROMPT_TOKENS, NEW_TOKENS = 32, 16, 64
STEPS_BETWEEN = 10


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the replies, with swaps and without in turn; a ratio of 1 is swapping at no cost."""
    with Engine(MODEL, lora=LoRASettings()) as engine:
        policies = [noisy_weights(engine.adapter_shapes, seed) for seed in range(2)]
        costs = [
            (
                asyncio.run(_seconds(engine, number, policies)),
                asyncio.run(_seconds(engine, number, [])),
            )
            for number in range(repeats + 1)  # the first pays for what is allocated and compiled once
        ]
        stats = engine.stats()
    if stats.restarts:
        raise InferenceError(f"{stats.restarts} requests were begun again after {stats.swaps} swaps")
    return BenchmarkResult.of_costs(
        "swap",
        costs[1:],
        "s",
        model=MODEL,
        rows=ROWS,
        new_tokens=NEW_TOKENS,
        steps_between_swaps=STEPS_BETWEEN,
        swaps=stats.swaps,
        seconds_a_swap=stats.swap_seconds / stats.swaps,
    )


async def _seconds(engine: Engine, number: int, policies: Sequence[Weights]) -> float:
    prompts = [new_tokens(PROMPT_TOKENS, "swap", number, len(policies), row) for row in range(ROWS)]
    started = time.perf_counter()
    replies = asyncio.create_task(
        together(engine, [request(prompt, NEW_TOKENS, row) for row, prompt in enumerate(prompts)])
    )
    if policies:
        await _swap_until(replies, engine, policies)
    await replies
    return time.perf_counter() - started


async def _swap_until(done: asyncio.Task[list[Tokens]], engine: Engine, policies: Sequence[Weights]) -> None:
    """Change the weights after every so many steps, as a learner would that is that fast."""
    version, before = engine.policy_version, engine.stats().generated_tokens
    while not done.done():
        if engine.stats().generated_tokens - before >= STEPS_BETWEEN * ROWS:
            version, before = version + 1, engine.stats().generated_tokens
            await engine.load_adapter(policies[version % 2], version)
        await asyncio.sleep(0.005)
