"""Train a Generator of problems and the Solvers of those that are neither too easy nor too hard.

selfplay train self_evolving_dataset --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.self_evolving_dataset import SelfEvolvingDatasetArena


class SelfEvolvingDatasetConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=2)
    """Root episodes per training step: new problems, and attempts at those that were kept."""
    generators: int = Field(8, ge=1)
    """New problems per training step."""
    n_attempts: int = Field(8, ge=1)
    """Attempts that measure how hard a new problem is; they aren't trained on."""
    group_size: int = Field(8, ge=2)
    """Attempts to train on at each problem, which are compared with each other."""
    hardest: float = Field(0.2, ge=0, le=1)
    """Pass rate below which a problem is too hard to keep."""
    easiest: float = Field(0.8, ge=0, le=1)
    """Pass rate above which a problem is too easy to keep."""
    store_size: int = Field(256, ge=1)
    """Most problems kept; the oldest goes first."""


def make_arena(config: SelfEvolvingDatasetConfig) -> SelfEvolvingDatasetArena:
    """What is trained, or evaluated."""
    return SelfEvolvingDatasetArena(
        config.batch_size,
        config.generators,
        n_attempts=config.n_attempts,
        group_size=config.group_size,
        hardest=config.hardest,
        easiest=config.easiest,
        store_size=config.store_size,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(SelfEvolvingDatasetConfig, argv, "selfplay train self_evolving_dataset")
    train(make_arena(config), config, "self_evolving_dataset")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
