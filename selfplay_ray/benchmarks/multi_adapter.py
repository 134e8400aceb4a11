"""`multi_adapter`: a batch whose rows belong to four adapters, against the same batch with one adapter."""

from __future__ import annotations

import asyncio

from selfplay_ray.benchmarks.load import MODEL, new_tokens, request, seconds
from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine
from selfplay_ray.lora import LoRASettings

ADAPTERS = ("live", "past", "older", "oldest")
ROWS, PROMPT_TOKENS, NEW_TOKENS = 32, 16, 48


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the replies, nearly all of it decoding, in turn; a ratio of 1 is mixing at no cost."""
    settings = LoRASettings()
    with Engine(MODEL, lora=settings) as engine:
        for version, name in enumerate(ADAPTERS, 1):
            weights = noisy_weights(engine.adapter_shapes, version)
            asyncio.run(engine.load_adapter(weights, version, name))
        costs = [
            (_seconds(engine, number, ADAPTERS), _seconds(engine, number, ADAPTERS[:1]))
            for number in range(repeats + 1)  # the first pays for what is allocated and compiled once
        ]
    return BenchmarkResult.of_costs(
        "multi_adapter",
        costs[1:],
        "s",
        model=MODEL,
        adapters=len(ADAPTERS),
        rank=settings.rank,
        rows=ROWS,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )


def _seconds(engine: Engine, number: int, adapters: tuple[str, ...]) -> float:
    prompts = [new_tokens(PROMPT_TOKENS, "multi_adapter", number, len(adapters), row) for row in range(ROWS)]
    asked = [
        request(prompt, NEW_TOKENS, row, adapters[row % len(adapters)]) for row, prompt in enumerate(prompts)
    ]
    return seconds(engine, asked)
