"""Train a Host who picks games, and the Players of them.

selfplay train nested_games --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.nested_games import NestedGamesArena


class NestedGamesConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(8, ge=1)
    """Hosts per training step."""
    duels: int = Field(6, ge=2)
    """Duels of the game that a Host picks."""


def make_arena(config: NestedGamesConfig) -> NestedGamesArena:
    """What is trained, or evaluated."""
    return NestedGamesArena(config.batch_size, config.duels)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(NestedGamesConfig, argv, "selfplay train nested_games")
    train(make_arena(config), config, "nested_games")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
