"""Counts and times for Prometheus, under vLLM's names where they mean the same, else under ``selfplay:``."""

from __future__ import annotations

import time
from collections import Counter as Multiset
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from selfplay_ray.inference.engine import EngineStats
from selfplay_ray.inference.server.reply import Piece
from selfplay_ray.inference.server.served import ServedModel, ServedModels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The bounds are vLLM's, so that its dashboards read ours.
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
EACH_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    80.0,
)
WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)


class ServerMetrics:
    """What is asked over HTTP, and what the engine behind it does; ``models.base`` labels all of it, as in vLLM."""

    def __init__(self, models: ServedModels) -> None:
        self._registry = CollectorRegistry()
        self._models = models
        self._asked: Multiset[str] = Multiset()
        self._registry.register(_Engine(models, self._asked))
        self._first_token = self._histogram("time_to_first_token", FIRST_TOKEN)
        self._each_token = self._histogram("request_time_per_output_token", EACH_TOKEN)
        self._whole = self._histogram("e2e_request_latency", WHOLE)
        self._finished = Counter(
            "vllm:request_success",
            "Generations that ended, by reason; abort is whose client has hung up.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort"):
            self._finished.labels(models.base, reason)

    @contextmanager
    def generation(self, model: ServedModel) -> Iterator[Measure]:
        """Measures one generation as long as this lasts, with what the caller tells."""
        measure = Measure()
        self._asked[model.name] += 1
        try:
            yield measure
        finally:
            self._asked[model.name] -= 1
            self._finished.labels(self._models.base, measure.reason).inc()
            self._observe(measure)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, bounds: Iterable[float]) -> Histogram:
        metric = Histogram(
            f"vllm:{name}_seconds", name, ["model_name"], registry=self._registry, buckets=tuple(bounds)
        )
        return metric.labels(self._models.base)

    def _observe(self, measure: Measure) -> None:
        seconds = time.perf_counter() - measure.started
        self._whole.observe(seconds)
        if measure.to_first_token is not None:
            self._first_token.observe(measure.to_first_token)
            if measure.tokens > 1:
                self._each_token.observe((seconds - measure.to_first_token) / (measure.tokens - 1))


@dataclass(slots=True)
class Measure:
    """One generation: when its first token came, in seconds, and how many there are."""

    started: float = field(default_factory=time.perf_counter)
    to_first_token: float | None = None
    tokens: int = 0
    reason: str = "abort"

    def add(self, piece: Piece) -> None:
        if self.to_first_token is None:
            self.to_first_token = time.perf_counter() - self.started
        self.tokens += len(piece.token_ids)
        self.reason = piece.finish_reason or self.reason


@dataclass(slots=True, eq=False)
class _Engine(Collector):
    """The engine's own counts, read when they are asked for."""

    models: ServedModels
    asked: Multiset[str]

    def collect(self) -> Iterable[Metric]:
        stats = self.models.engine.stats()
        for name, value in _gauges(stats).items():
            gauge = GaugeMetricFamily(name, name, labels=["model_name"])
            gauge.add_metric([self.models.base], value)
            yield gauge
        for name, value in _counters(stats).items():
            counter = CounterMetricFamily(name, name, labels=["model_name"])
            counter.add_metric([self.models.base], value)
            yield counter
        version = GaugeMetricFamily(
            "selfplay:policy_version", "Of each model.", labels=["model_name", "model"]
        )
        asked = GaugeMetricFamily(
            "selfplay:generations", "That run or wait, of each model.", labels=["model_name", "model"]
        )
        for model in self.models.list():
            version.add_metric([self.models.base, model.name], model.version)
            asked.add_metric([self.models.base, model.name], self.asked[model.name])
        yield from (version, asked)


def _gauges(stats: EngineStats) -> dict[str, float]:
    # What is kept for later prompts is given up when others need the room, so it isn't in use: as in vLLM.
    used = (stats.kv_bytes - stats.prefix_bytes) / max(1, stats.kv_capacity_bytes)
    return {
        "vllm:num_requests_running": stats.running,
        "vllm:num_requests_waiting": stats.waiting,
        "vllm:kv_cache_usage_perc": used,
        "selfplay:kv_bytes": stats.kv_bytes,
        "selfplay:kv_capacity_bytes": stats.kv_capacity_bytes,
        "selfplay:prefix_bytes": stats.prefix_bytes,
        "selfplay:adapters": stats.adapters,
    }


def _counters(stats: EngineStats) -> dict[str, float]:
    return {
        "vllm:prompt_tokens": stats.prompt_tokens,
        "vllm:generation_tokens": stats.generated_tokens,
        # vLLM counts these in tokens: asked of the cache, and found there.
        "vllm:prefix_cache_queries": stats.prompt_tokens,
        "vllm:prefix_cache_hits": stats.reused_tokens,
        "selfplay:prefilled_tokens": stats.prefilled_tokens,
        "selfplay:prefix_queries": stats.prefix_queries,
        "selfplay:prefix_hits": stats.prefix_hits,
        "selfplay:busy_seconds": stats.busy_seconds,
        "selfplay:swaps": stats.swaps,
        "selfplay:swap_seconds": stats.swap_seconds,
        "selfplay:restarts": stats.restarts,
    }
