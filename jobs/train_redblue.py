"""Train an Attacker who misleads and a Defender who adds two numbers in spite of it.

selfplay train redblue --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.redblue import RedBlueArena


class RedBlueConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Attacks per training step."""
    group_size: int = Field(8, ge=2)
    """Attacks on each sum, which are compared with each other."""


def make_arena(config: RedBlueConfig) -> RedBlueArena:
    """What is trained, or evaluated."""
    return RedBlueArena(config.batch_size, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(RedBlueConfig, argv, "selfplay train redblue")
    train(make_arena(config), config, "redblue")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
