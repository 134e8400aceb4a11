"""Benchmarks of the core, by name: each module has ``run(repeats: int) -> BenchmarkResult``.

The modules are named, not imported: one benchmark doesn't pay for what another needs.
"""

from __future__ import annotations

CORE_BENCHMARKS = {
    name: f"selfplay_ray.benchmarks.{name}"
    for name in (
        "throughput",
        "mixed_lengths",
        "group_fork",
        "conversation_kv",
        "multi_adapter",
        "swap",
        "http",
        "shared_prompt_step",
        "conversation_step",
        "distinct_tokens",
    )
}
