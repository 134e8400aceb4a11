"""Train a Proposer by tournaments between what it proposes.

selfplay train tournament --num-steps 30 --candidates 4
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.judging import PairwiseJudge
from selfplay_ray.tasks.tournament import CRITERION, JUDGED, TournamentArena


class TournamentConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(4, ge=1)
    """Tournaments per training step."""
    candidates: int = Field(4, ge=2)
    """Proposals in a tournament, each of which is compared with every other."""
    votes: int = Field(2, ge=1)
    """How often the judge is asked in each order."""
    reasoning_judge: bool = False
    """Let the judge think before its verdict: for models that can, and many more tokens."""


def make_arena(config: TournamentConfig) -> TournamentArena:
    """What is trained, or evaluated."""
    judging = PairwiseJudge(CRITERION, JUDGED, votes=config.votes, reasoning=config.reasoning_judge)
    return TournamentArena(config.batch_size, judging, config.candidates)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(TournamentConfig, argv, "selfplay train tournament")
    train(make_arena(config), config, "tournament")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
