"""Train a Solver on problems that it nearly solves or nearly misses, drawn the more often.

selfplay train difficulty_aware --num-steps 30
selfplay train difficulty_aware --num-steps 30 --adapt 0     # drawn alike, to compare
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.difficulty_aware import DifficultyAwareArena


class DifficultyAwareConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(64, ge=1)
    """Attempts per training step."""
    group_size: int = Field(8, ge=2)
    """Attempts at each problem, which are compared with each other."""
    pool: int = Field(40, ge=1, le=45)
    """Problems of each of five kinds."""
    adapt: float = Field(0.5, ge=0, le=1)
    """How far the weight of a problem follows what was just seen of it: 0 not at all, 1 all the way."""


def make_arena(config: DifficultyAwareConfig) -> DifficultyAwareArena:
    """What is trained, or evaluated."""
    return DifficultyAwareArena(config.batch_size, config.group_size, pool=config.pool, adapt=config.adapt)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(DifficultyAwareConfig, argv, "selfplay train difficulty_aware")
    train(make_arena(config), config, "difficulty_aware")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
