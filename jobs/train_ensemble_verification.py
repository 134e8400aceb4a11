"""Train Solvers on what most of them say, without a known answer.

selfplay train ensemble_verification --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.ensemble_verification import EnsembleVerificationArena


class EnsembleVerificationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(64, ge=1)
    """Attempts per training step."""
    n_solvers: int = Field(8, ge=2)
    """Attempts at each question, among which the majority decides."""
    quorum: int = Field(3, ge=2)
    """Fewest attempts that make a majority, where they are more than say anything else."""


def make_arena(config: EnsembleVerificationConfig) -> EnsembleVerificationArena:
    """What is trained, or evaluated."""
    return EnsembleVerificationArena(config.batch_size, config.n_solvers, config.quorum)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(EnsembleVerificationConfig, argv, "selfplay train ensemble_verification")
    train(make_arena(config), config, "ensemble_verification")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
