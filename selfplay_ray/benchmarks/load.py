"""What the engine's benchmarks ask for: prompts it has never seen, and replies of a fixed length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import LIVE, GenerationRequest
from selfplay_ray.seeds import derive_rng

MODEL = "smollm2-135m"
ORDINARY_TOKENS = range(100, 40_000)

Tokens = tuple[int, ...]


def new_tokens(length: int, *key: str | int) -> Tokens:
    """Ordinary tokens at random, the same for the same ``key``."""
    return tuple(derive_rng(0, "benchmark", *key).choices(ORDINARY_TOKENS, k=length))


def request(prompt: Tokens, tokens: int, seed: int, adapter: str | None = LIVE) -> GenerationRequest:
    """Asks for exactly so many tokens."""
    return GenerationRequest(
        f"sample{seed}", prompt, tokens, temperature=1.0, seed=seed, ignore_eos=True, adapter=adapter
    )


async def together(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Tokens]:
    """What is said to ``requests`` made at once."""
    answers = await asyncio.gather(*[engine.generate(one) for one in requests])
    return [answer.token_ids for answer in answers]


def seconds(engine: Engine, requests: Sequence[GenerationRequest]) -> float:
    """How long ``engine`` takes for ``requests`` made at once."""
    started = time.perf_counter()
    asyncio.run(_discard(engine, requests))
    return time.perf_counter() - started


async def _discard(engine: Engine, requests: Sequence[GenerationRequest]) -> None:
    await together(engine, requests)
