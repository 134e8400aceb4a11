"""Train a Planner, an Executor, a Critic and a Reviser, who solve word problems together.

selfplay train plan_execute --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.plan_execute import PlanExecuteArena


class PlanExecuteConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Problems, each solved in four steps, per training step."""
    group_size: int = Field(8, ge=2)
    """Attempts at each problem, which are compared with each other."""


def make_arena(config: PlanExecuteConfig) -> PlanExecuteArena:
    """What is trained, or evaluated."""
    return PlanExecuteArena(config.batch_size, config.group_size)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(PlanExecuteConfig, argv, "selfplay train plan_execute")
    train(make_arena(config), config, "plan_execute")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
