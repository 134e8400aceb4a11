"""Train agents of different styles against each other, and rate them.

selfplay train elo_arena --num-steps 30 --agents 4 --k-factor 16
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.judging import PairwiseJudge
from selfplay_ray.tasks.elo_arena import CRITERION, JUDGED, STYLES, EloArena


class EloArenaConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(2, ge=1)
    """Round robins per training step."""
    agents: int = Field(4, ge=2, le=len(STYLES))
    """How many play, everyone against everyone."""
    k_factor: float = Field(16.0, gt=0)
    """The most points that a match can move a rating by."""
    votes: int = Field(2, ge=1)
    """How often the judge is asked in each order."""
    reasoning_judge: bool = False
    """Let the judge think before its verdict: for models that can, and many more tokens."""


def make_arena(config: EloArenaConfig) -> EloArena:
    """What is trained, or evaluated."""
    judging = PairwiseJudge(CRITERION, JUDGED, votes=config.votes, reasoning=config.reasoning_judge)
    return EloArena(config.batch_size, judging, config.agents, config.k_factor)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(EloArenaConfig, argv, "selfplay train elo_arena")
    train(make_arena(config), config, "elo_arena")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
