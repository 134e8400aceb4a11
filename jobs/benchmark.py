"""Run the benchmarks by name, each in a process of its own: `selfplay bench [NAME ...] [--json] [--repeats N]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from selfplay_ray.benchmarks import CORE_BENCHMARKS
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.command import run_command
from selfplay_ray.config_sources import SentenceParser, suggestion
from selfplay_ray.errors import ConfigError, SelfPlayError

# Name to module; each has `run(repeats: int) -> BenchmarkResult`. Those that need Ray live among the jobs.
BENCHMARKS = {
    **CORE_BENCHMARKS,
    "noop_episodes": "selfplay_ray.jobs.bench_noop_episodes",
    "orchestration": "selfplay_ray.jobs.bench_orchestration",
}

STDERR = 2  # where a benchmark's own words go: stdout is for results


def main(argv: Sequence[str]) -> int:
    """Run what ``argv`` names (all, if nothing) and print one JSON object a line, or a table.

    Raises:
        ConfigError: an unknown name or flag, or no repeats.
        SelfPlayError: a benchmark failed; the ones before it have been printed.
    """
    options = _parse(argv)
    if options.result_file:
        result = import_module(BENCHMARKS[options.names[0]]).run(options.repeats)
        options.result_file.write_bytes(msgspec.json.encode(asdict(result)))
        return 0
    results = []
    for name in options.names or BENCHMARKS:
        results.append(_run_apart(name, options.repeats))
        if options.json:
            sys.stdout.write(json.dumps(asdict(results[-1])) + "\n")
            sys.stdout.flush()
    if not options.json:
        Console().print(_table(results))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = SentenceParser(
        prog="selfplay bench", description=f"Benchmarks: {', '.join(BENCHMARKS)}.", allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="Which to run; all, if none is named.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object a line.")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="Measurements of each (default: 3)."
    )
    # Given to the process of one benchmark by the one that runs them all.
    parser.add_argument("--result-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_all(argv, known=["--json", "--repeats"])
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(
            f"unknown benchmark {unknown[0]!r}{suggestion(unknown[0], BENCHMARKS)}; known: {known}"
        )
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} is not possible: it must be at least 1")
    return options


def _run_apart(name: str, repeats: int) -> BenchmarkResult:
    """Run one benchmark in a fresh process, so that none inherits another's memory or threads.

    One BLAS thread unless the environment says otherwise: two that share cores spin against each other, and
    ratios would measure that.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "selfplay_ray", "bench", name, "--repeats", str(repeats)]
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(  # noqa: S603
            [*command, "--result-file", str(file)], env=environment, stdout=STDERR, check=False
        )
        if done.returncode or not file.exists():
            raise SelfPlayError(
                f"benchmark {name} failed with exit code {done.returncode}; see what it said above"
            )
        return msgspec.json.decode(file.read_bytes(), type=BenchmarkResult)


def _table(results: Sequence[BenchmarkResult]) -> Table:
    table = Table("benchmark", "ratio", "value", "baseline", "unit", "spread")
    for r in results:
        numbers = (f"{r.ratio:.2f}×", f"{r.value:.4g}", f"{r.baseline:.4g}")
        table.add_row(r.name, *numbers, r.unit, f"{r.spread:.0%}")
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
