"""`http`: our server asked by our client, against the same engine asked in its own process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from selfplay_ray.benchmarks.load import MODEL, new_tokens
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.benchmarks.samplers import InProcess, OverHTTP, Sampler
from selfplay_ray.benchmarks.throughput import NEW_TOKENS, PROMPT_TOKENS, PROMPTS
from selfplay_ray.errors import ClusterError
from selfplay_ray.inference.endpoints import Endpoints
from selfplay_ray.inference.engine import Engine


def run(repeats: int) -> BenchmarkResult:
    """Seconds for the replies to distinct prompts, in turn; a ratio of 1 is HTTP at no cost.

    The server is a process of its own, as it is in life, so what HTTP costs may be paid on another core.
    """
    with _server() as url, Engine(MODEL) as engine:
        over_http, direct = OverHTTP(Endpoints([url]), MODEL), InProcess(engine, None)
        costs = asyncio.run(_costs(over_http, direct, repeats))
    return BenchmarkResult.of_costs(
        "http",
        costs,
        "s",
        model=MODEL,
        prompts=PROMPTS,
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )


async def _costs(over_http: OverHTTP, direct: InProcess, repeats: int) -> list[tuple[float, float]]:
    costs = [
        (await _seconds(over_http, number), await _seconds(direct, number))
        for number in range(repeats + 1)  # the first pays for what is allocated and compiled once
    ]
    await over_http.endpoints.aclose()
    return costs[1:]


async def _seconds(sampler: Sampler, number: int) -> float:
    prompts = [new_tokens(PROMPT_TOKENS, "http", number, index) for index in range(PROMPTS)]
    started = time.perf_counter()
    await sampler.sample(prompts, 1, NEW_TOKENS)
    return time.perf_counter() - started


@contextmanager
def _server() -> Iterator[str]:
    """`selfplay serve` on a free port; its address up to /v1."""
    command = [sys.executable, "-m", "selfplay_ray.inference.server", "--model", MODEL, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            greeting = process.stdout.readline() if process.stdout else ""
            if "http" not in greeting:
                raise ClusterError("the server didn't start; see what it said above")
            yield greeting[greeting.index("http") :].split(";")[0].strip()
        finally:
            process.terminate()
