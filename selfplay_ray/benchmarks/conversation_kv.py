"""`conversation_kv`: conversations of six turns whose keys and values are kept, against running each turn afresh."""

from __future__ import annotations

import asyncio
import time

from selfplay_ray.benchmarks.load import MODEL, new_tokens, request, together
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.inference.engine import Engine

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
    conversations = [
        new_tokens(FIRST_TOKENS, "conversation_kv", number, index) for index in range(CONVERSATIONS)
    ]
    started = time.perf_counter()
    for turn in range(TURNS):
        asked = [request(told, REPLY_TOKENS, seed=turn) for told in conversations]
        replies = await together(engine, asked)
        heard = [new_tokens(TURN_TOKENS, "turn", number, turn, index) for index in range(CONVERSATIONS)]
        conversations = [a + b + c for a, b, c in zip(conversations, replies, heard, strict=True)]
    return time.perf_counter() - started
