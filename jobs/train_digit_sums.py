"""Train an Adder to answer sums of two one-digit numbers.

selfplay train digit_sums --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.digit_sums import DigitSumsArena


class DigitSumsConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(64, ge=1)
    """Answers per training step."""
    group_size: int = Field(8, ge=2)
    """Answers to each question, which are compared with each other."""


def make_arena(config: DigitSumsConfig) -> DigitSumsArena:
    """What is trained, or evaluated."""
    return DigitSumsArena(config.batch_size, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(DigitSumsConfig, argv, "selfplay train digit_sums")
    train(make_arena(config), config, "digit_sums")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
