"""Train a Generator on those of its answers that pass a filter, and the Verifier that judges them.

selfplay train self_distillation --num-steps 30
selfplay train self_distillation --num-steps 30 --kept-by verifier     # without a computed answer
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.self_distillation import Filter, SelfDistillationArena


class SelfDistillationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Samples per training step."""
    group_size: int = Field(8, ge=2)
    """Samples of each question, which are compared with each other."""
    verdicts: int = Field(4, ge=1)
    """Times that the Verifier judges each sample."""
    kept_by: Filter = "check"
    """What a sample must pass to be learned from: the computed check, most of the Verifier's verdicts, or both."""


def make_arena(config: SelfDistillationConfig) -> SelfDistillationArena:
    """What is trained, or evaluated."""
    return SelfDistillationArena(
        config.batch_size, config.group_size, verdicts=config.verdicts, kept_by=config.kept_by
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(SelfDistillationConfig, argv, "selfplay train self_distillation")
    train(make_arena(config), config, "self_distillation")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
