"""How the engines are, as Ray's metrics: each node serves those of its actors as Prometheus text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ray.util.metrics import Gauge

from selfplay_ray.inference.requests import EngineStats

REPORT_SECONDS = 2.0

GAUGES = {
    "selfplay_engine_running_requests": "Requests being answered.",
    "selfplay_engine_waiting_requests": "Requests that wait for a place in the batch.",
    "selfplay_engine_tokens_per_second": "Tokens sampled a second, since the last report.",
    "selfplay_engine_kv_cache_usage": "Share of the memory for keys and values that is taken, 0 to 1.",
    "selfplay_engine_prefix_hit_rate": "Share of prompts that began with keys and values kept from before, 0 to 1.",
    "selfplay_engine_swap_seconds_total": "Seconds spent on changes of weights.",
}


class EngineGauges:
    """Ray's gauges of one engine, told apart by the tag ``engine``."""

    def __init__(self, engine: str) -> None:
        self._tags = {"engine": engine}
        self._gauges = {name: Gauge(name, text, tag_keys=("engine",)) for name, text in GAUGES.items()}
        self._time = time.monotonic()
        self._tokens = 0

    def set(self, stats: EngineStats) -> None:
        now = time.monotonic()
        rate = (stats.generated_tokens - self._tokens) / max(now - self._time, 1e-9)
        self._time, self._tokens = now, stats.generated_tokens
        for name, value in zip(GAUGES, readings(stats, rate), strict=True):
            self._gauges[name].set(value, self._tags)


def readings(stats: EngineStats, tokens_per_second: float) -> tuple[float, ...]:
    """What the gauges say, in their order; a share of nothing is 0."""
    return (
        stats.running,
        stats.waiting,
        tokens_per_second,
        stats.kv_bytes / max(stats.kv_capacity_bytes, 1),
        stats.prefix_hits / max(stats.prefix_queries, 1),
        stats.swap_seconds,
    )


async def report_stats(engine: str, stats: Callable[[], EngineStats]) -> None:
    """Keep the gauges of ``engine`` up to date, for as long as its actor lives."""
    gauges = EngineGauges(engine)
    while True:
        gauges.set(stats())
        await asyncio.sleep(REPORT_SECONDS)
