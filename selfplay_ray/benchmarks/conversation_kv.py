"""`conversation_kv`: conversations of six turns whose keys and values are kept, against running each turn afresh."""

from __future__ import annotations

import asyncio
import time

from selfplay_ray.benchmarks.load import MODEL, new_tokens
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.benchmarks.samplers import InProcess, Sampler
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import LIVE

CONVERSATIONS, TURNS = 8, 6
FIRST_TOKENS, TURN_TOKENS, REPLY_TOKENS = 200, 16, 32


def run(repeats: int) -> BenchmarkResult:
    """Seconds for all the conversations, held at the same time, on an engine that keeps and one that doesn't."""
    with Engine(MODEL) as keeping, Engine(MODEL, fork=False) as forgetful:
        costs = [
            (asyncio.run(_seconds(keeping, number)), asyncio.run(_seconds(forgetful, number)))
            for number in range(repeats)
        ]
    return BenchmarkResult.of_costs(
        "conversation_kv",
        costs,
        "s",
        model=MODEL,
        conversations=CONVERSATIONS,
        turns=TURNS,
        first_tokens=FIRST_TOKENS,
        turn_tokens=TURN_TOKENS,
        reply_tokens=REPLY_TOKENS,
    )


async def _seconds(engine: Engine, number: int) -> float:
    started = time.perf_counter()
    await converse(InProcess(engine, LIVE), number)
    return time.perf_counter() - started


async def converse(
    sampler: Sampler,
    number: int,
    *,
    conversations: int = CONVERSATIONS,
    turns: int = TURNS,
    first_tokens: int = FIRST_TOKENS,
    turn_tokens: int = TURN_TOKENS,
    reply_tokens: int = REPLY_TOKENS,
) -> None:
    """Hold conversations that only this ``number`` has: each turn is asked for with all tokens before it."""
    told = [new_tokens(first_tokens, "conversation", number, index) for index in range(conversations)]
    for turn in range(turns):
        replies = await sampler.sample(told, 1, reply_tokens)
        heard = [new_tokens(turn_tokens, "turn", number, turn, index) for index in range(conversations)]
        told = [a + b + c for a, b, c in zip(told, replies, heard, strict=True)]
