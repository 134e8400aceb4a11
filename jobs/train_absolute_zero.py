"""Train a Proposer of programs and Solvers of puzzles about them, from nothing but running the programs.

selfplay train absolute_zero --num-steps 30
selfplay train absolute_zero --sandbox docker
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.sandbox import AUTO, find_sandbox
from selfplay_ray.tasks.absolute_zero import AbsoluteZeroArena


class AbsoluteZeroConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(12, ge=1)
    """Proposers per training step, a third of them for each kind of puzzle."""
    n_solver_rollouts: int = Field(4, ge=2)
    """Solvers that attempt each puzzle."""
    sandbox: str = AUTO
    """What programs run in: auto, bubblewrap, sandbox-exec, docker, monty, or unsafe-subprocess, which is none."""


def make_arena(config: AbsoluteZeroConfig) -> AbsoluteZeroArena:
    """What is trained, or evaluated."""
    return AbsoluteZeroArena(config.batch_size, find_sandbox(config.sandbox), config.n_solver_rollouts)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(AbsoluteZeroConfig, argv, "selfplay train absolute_zero")
    train(make_arena(config), config, "absolute_zero")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
