"""Benchmarks of the core, by name: each module has ``run(repeats: int) -> BenchmarkResult``.

The modules are named, not imported: one benchmark doesn't pay for what another needs.
"""

from __future__ import annotations

CORE_BENCHMARKS = {
    "group_fork": "selfplay_ray.benchmarks.group_fork",
    "shared_prompt_step": "selfplay_ray.benchmarks.shared_prompt_step",
}
