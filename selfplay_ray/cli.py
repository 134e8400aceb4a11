"""The command ``selfplay``: a thin door to the jobs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast

import selfplay_ray
from selfplay_ray import jobs
from selfplay_ray.command import Main, run_command
from selfplay_ray.errors import ConfigError
from selfplay_ray.jobs.by_name import known_tasks, training_job

USAGE = """\
usage: selfplay train TASK [flags]
       selfplay eval TASK [--run RUN] [flags]
       selfplay bench [NAME ...] [--json] [--repeats N]
       selfplay serve [--model MODEL] [flags]
       selfplay export RUN_OR_ADAPTER OUT [--version N] [--fuse] [--model MODEL]
       selfplay --version

train   Train by self-play on TASK: {tasks}.
        selfplay train TASK --help lists its flags, --dry-run shows what they come to.
eval    Say by how much a run's adapter is better at TASK than the base model, or than another adapter.
bench   Run the benchmarks named, or all of them.
serve   Serve a model over HTTP, in vLLM's dialect of OpenAI's API.
export  Write a run's adapter as PEFT does, or with --fuse the model with the adapter in it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``selfplay`` with ``argv`` (the process's own by default) and return the exit code."""
    return run_command(_dispatch, argv)


def _dispatch(argv: Sequence[str]) -> int:
    command, *rest = argv or ("--help",)
    match command:
        case "train":
            return _train(rest)
        case "eval":
            return _eval(rest)
        case "bench":
            return _job("benchmark")(rest)
        case "serve":
            return _job("serve")(rest)
        case "export":
            return _job("export")(rest)
        case "--version":
            sys.stdout.write(f"selfplay-ray {selfplay_ray.__version__}\n")
        case "-h" | "--help":
            sys.stdout.write(USAGE.format(tasks=known_tasks()))
        case _:
            raise ConfigError(
                f"unknown command {command!r}; known: train, eval, bench, serve, export, --version, --help"
            )
    return 0


def _train(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: selfplay train TASK [flags]\n\ntasks: {known_tasks()}\n")
        return 0
    return cast(Main, training_job(argv[0]).main)(argv[1:])


def _eval(argv: Sequence[str]) -> int:
    if not argv:
        raise ConfigError(f"which task? known: {known_tasks()}; selfplay eval --help lists the flags")
    if not argv[0].startswith("-"):
        training_job(argv[0])  # an unknown one is told before anything heavy is imported
    return _job("evaluate")(argv)


def _job(module: str) -> Main:
    return cast(Main, import_module(f"{jobs.__name__}.{module}").main)
