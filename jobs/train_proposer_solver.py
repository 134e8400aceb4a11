"""Train a Proposer and a Solver against each other.

python jobs/train_proposer_solver.py --num-steps 40
selfplay train proposer_solver --num-steps 40
ray job submit --working-dir . -- python jobs/train_proposer_solver.py --num-steps 40
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.proposer_solver import ProposerSolverArena


class ProposerSolverConfig(RunConfig):
    """What this task adds to a run's configuration."""

    n_solver_rollouts: int = Field(8, ge=2)
    """Solvers that attempt each question."""


def make_arena(config: ProposerSolverConfig) -> ProposerSolverArena:
    """What is trained, or evaluated."""
    return ProposerSolverArena(config.batch_size, config.n_solver_rollouts)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(ProposerSolverConfig, argv, "selfplay train proposer_solver")
    train(make_arena(config), config, "proposer_solver")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
