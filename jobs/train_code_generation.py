"""Train a Generator to write Python functions, which are tested in a sandbox.

selfplay train code_generation --num-steps 30
selfplay train code_generation --sandbox docker
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.sandbox import AUTO, find_sandbox
from selfplay_ray.tasks.code_generation import CodeGenerationArena


class CodeGenerationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Functions per training step."""
    group_size: int = Field(8, ge=2)
    """Functions for each specification, which are compared with each other."""
    n_tests: int = Field(4, ge=1)
    """Inputs each function is tested with."""
    sandbox: str = AUTO
    """What the functions run in: auto, bubblewrap, sandbox-exec, docker, monty, or unsafe-subprocess, which is none."""


def make_arena(config: CodeGenerationConfig) -> CodeGenerationArena:
    """What is trained, or evaluated."""
    return CodeGenerationArena(
        config.batch_size, find_sandbox(config.sandbox), config.group_size, config.n_tests
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(CodeGenerationConfig, argv, "selfplay train code_generation")
    train(make_arena(config), config, "code_generation")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
