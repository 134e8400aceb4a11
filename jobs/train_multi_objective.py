"""Train a Writer, a Summarizer and a Critic, each for an objective of its own, in one step.

selfplay train multi_objective --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.multi_objective import MultiObjectiveArena


class MultiObjectiveConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(24, ge=1)
    """Problems written about per training step."""
    group_size: int = Field(8, ge=2)
    """Answers to each problem, which are compared with each other."""
    role_weights: dict[str, float] = Field(
        default_factory=lambda: {"Writer": 1.0, "Summarizer": 0.5, "Critic": 0.5}
    )
    """Weight of each role's objective; to be changed in the TOML file."""


def make_arena(config: MultiObjectiveConfig) -> MultiObjectiveArena:
    """What is trained, or evaluated."""
    return MultiObjectiveArena(config.batch_size, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(MultiObjectiveConfig, argv, "selfplay train multi_objective")
    train(make_arena(config), config, "multi_objective")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
