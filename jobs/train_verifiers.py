"""Train the agents of an environment of verifiers' (`pip install 'selfplay-ray[verifiers]'`).

selfplay train verifiers --num-steps 30                       # sums, which need nothing else
selfplay train verifiers --environment my-installed-tasks --max-tokens 256
selfplay train verifiers --environment tasks/rhymes.py:Rhymes --environment-options '{"agent": {"max_turns": 4}}'
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field, JsonValue

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.integrations.verifiers import VerifiersArena
from selfplay_ray.integrations.verifiers_environment import Environment

SUMS = "selfplay_ray.integrations.verifiers_sums:Sums"


class VerifiersConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(64, ge=1)
    """Episodes per training step."""
    group_size: int = Field(8, ge=2)
    """Episodes of each task, which are compared with each other."""
    environment: str = SUMS
    """A taskset, or ENVIRONMENT+TASKSET: each an installed package's id, MODULE:CLASS or FILE.py:CLASS, which every
    machine of a cluster needs."""
    environment_options: dict[str, JsonValue] = Field(default_factory=dict)
    """verifiers' configuration of the environment, its taskset and its agents."""
    evaluation_options: dict[str, JsonValue] | None = None
    """The same for evaluations, where the environment has other tasks for them; otherwise some are held out."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the tasks that are for evaluation only; with 0 it gets those that are trained on."""
    limit: int = Field(1000, ge=0)
    """Most tasks taken, the first ones; 0 is all of them."""
    episode_seconds: float = Field(600.0, gt=0)
    """Time after which an episode has failed."""
    max_tokens: int = Field(12, ge=1)
    """Most tokens in one reply."""


def make_arena(config: VerifiersConfig) -> VerifiersArena:
    """What is trained, or evaluated."""
    evaluation = config.evaluation_options
    return VerifiersArena(
        config.batch_size,
        _environment(config, config.environment_options),
        group_size=config.group_size,
        evaluation=None if evaluation is None else _environment(config, evaluation),
        held_out=config.held_out,
        limit=config.limit,
        max_tokens=config.max_tokens,
    )


def _environment(config: VerifiersConfig, options: dict[str, JsonValue]) -> Environment:
    return Environment(config.environment, json.dumps(options, sort_keys=True), config.episode_seconds)


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(VerifiersConfig, argv, "selfplay train verifiers")
    train(make_arena(config), config, "verifiers")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
