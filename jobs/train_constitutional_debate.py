"""Train a Responder by debates about whether its answers violate a principle.

selfplay train constitutional_debate --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.judging import PairwiseJudge
from selfplay_ray.tasks.constitutional_debate import CRITERION, JUDGED, ConstitutionalDebateArena


class ConstitutionalDebateConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(8, ge=1)
    """Cases per training step."""
    turns: int = Field(1, ge=1)
    """How often Prosecutor and Defender speak, each."""
    votes: int = Field(3, ge=1)
    """How often the judge is asked in each order."""
    reasoning_judge: bool = False
    """Let the judge think before its verdict: for models that can, and many more tokens."""


def make_arena(config: ConstitutionalDebateConfig) -> ConstitutionalDebateArena:
    """What is trained, or evaluated."""
    judging = PairwiseJudge(CRITERION, JUDGED, votes=config.votes, reasoning=config.reasoning_judge)
    return ConstitutionalDebateArena(config.batch_size, judging, config.turns)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(ConstitutionalDebateConfig, argv, "selfplay train constitutional_debate")
    train(make_arena(config), config, "constitutional_debate")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
