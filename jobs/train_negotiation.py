"""Train two players who trade resources, and don't know what they are worth to the other.

selfplay train negotiation --max-turns 10
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.negotiation import NegotiationArena


class NegotiationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(16, ge=1)
    """Negotiations per training step."""
    max_turns: int = Field(6, ge=1)
    """Moves after which a negotiation is cut off."""
    rae_decay: float = Field(0.95, ge=0, lt=1)
    """How slowly a player's baseline follows its rewards."""
    temperature: float = Field(0.7, gt=0)
    """At which both players speak."""
    max_tokens: int = Field(24, ge=1)
    """Most tokens in one move."""


def make_arena(config: NegotiationConfig) -> NegotiationArena:
    """What is trained, or evaluated."""
    return NegotiationArena(
        config.batch_size,
        max_turns=config.max_turns,
        rae_decay=config.rae_decay,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(NegotiationConfig, argv, "selfplay train negotiation")
    train(make_arena(config), config, "negotiation")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
