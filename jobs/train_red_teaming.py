"""Train Attackers who make a chatbot break its rule, and the Defender who patches it.

selfplay train red_teaming --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.red_teaming import RedTeamingArena


class RedTeamingConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(4, ge=1)
    """Chatbots per training step."""
    attacks: int = Field(4, ge=2)
    """Attacks on each, before its patch and after it."""
    group_size: int = Field(2, ge=2)
    """Chatbots with the same rule, whose patches are compared with each other."""


def make_arena(config: RedTeamingConfig) -> RedTeamingArena:
    """What is trained, or evaluated."""
    return RedTeamingArena(config.batch_size, config.attacks, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(RedTeamingConfig, argv, "selfplay train red_teaming")
    train(make_arena(config), config, "red_teaming")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
