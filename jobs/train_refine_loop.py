"""Train a Generator, a Critic and a Reviser, who make a draft better round by round.

selfplay train refine_loop --num-steps 30 --rounds 2
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.judging import GradingJudge
from selfplay_ray.tasks.refine_loop import CRITERION, JUDGED, RefineLoopArena


class RefineLoopConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(16, ge=1)
    """Episodes per training step."""
    group_size: int = Field(8, ge=2)
    """Episodes about each topic, which are compared with each other."""
    rounds: int = Field(1, ge=1)
    """How often a draft is criticized and revised."""
    votes: int = Field(3, ge=1)
    """How often the judge is asked about each draft."""
    reasoning_judge: bool = False
    """Let the judge think before its verdict: for models that can, and many more tokens."""


def make_arena(config: RefineLoopConfig) -> RefineLoopArena:
    """What is trained, or evaluated."""
    judging = GradingJudge(CRITERION, JUDGED, votes=config.votes, reasoning=config.reasoning_judge)
    return RefineLoopArena(config.batch_size, judging, config.rounds, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(RefineLoopConfig, argv, "selfplay train refine_loop")
    train(make_arena(config), config, "refine_loop")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
