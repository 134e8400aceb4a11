"""Counts and times as Prometheus text, under vLLM's names where they mean the same, else under ``selfplay:``."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

from selfplay_ray.inference.requests import EngineStats
from selfplay_ray.inference.server.reply import Piece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(slots=True)
class Histogram:
    """Cumulative counts by upper bound, in seconds."""

    bounds: Sequence[float] = SECONDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        cumulative = list(accumulate(self.counts))
        for bound, count in zip((*map(str, self.bounds), "+Inf"), cumulative, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {cumulative[-1]}"


@dataclass(slots=True)
class RequestMetrics:
    """What was asked over HTTP. The time to the first token is that of replies that come as they are sampled."""

    time_to_first_token: Histogram = field(default_factory=Histogram)
    request_seconds: Histogram = field(default_factory=Histogram)
    finished: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def request(self) -> Iterator[Callable[[Piece], None]]:
        """Measures one generation, whose pieces the caller reports."""
        started, pieces, reason = time.perf_counter(), 0, "abort"

        def measure(piece: Piece) -> None:
            nonlocal pieces, reason
            pieces += 1
            if pieces == 1 and piece.finish_reason is None:
                self.time_to_first_token.observe(time.perf_counter() - started)
            reason = piece.finish_reason or reason

        try:
            yield measure
        finally:
            self.finished[reason] += 1
            self.request_seconds.observe(time.perf_counter() - started)


def prometheus_text(requests: RequestMetrics, engine: EngineStats, model: str, version: int) -> str:
    """The exposition format's lines; ``model`` labels them all, as vLLM does."""
    labels = 'model_name="' + model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
    lines = []
    for name, kind, value in _engine_samples(engine, version):
        lines += [f"# TYPE {name} {kind}", f"{name}{{{labels}}} {value}"]
    lines.append("# TYPE vllm:request_success_total counter")
    for reason in ("stop", "length", "abort"):
        sample = f'vllm:request_success_total{{{labels},finished_reason="{reason}"}}'
        lines.append(f"{sample} {requests.finished[reason]}")
    for name, histogram in (
        ("vllm:time_to_first_token_seconds", requests.time_to_first_token),
        ("vllm:e2e_request_latency_seconds", requests.request_seconds),
    ):
        lines += [f"# TYPE {name} histogram", *histogram.lines(name, labels)]
    return "\n".join(lines) + "\n"


def _engine_samples(engine: EngineStats, version: int) -> list[tuple[str, str, float]]:
    return [
        ("vllm:num_requests_running", "gauge", engine.running),
        ("vllm:num_requests_waiting", "gauge", engine.waiting),
        ("vllm:prompt_tokens_total", "counter", engine.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", engine.generated_tokens),
        ("selfplay:prefilled_tokens_total", "counter", engine.prefilled_tokens),
        ("selfplay:busy_seconds_total", "counter", engine.busy_seconds),
        ("selfplay:swap_seconds_total", "counter", engine.swap_seconds),
        ("selfplay:policy_version", "gauge", version),
    ]
