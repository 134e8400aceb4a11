"""Train agents who split some items by proposals and votes.

selfplay train multi_agent_negotiation --num-steps 30
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.tasks.multi_agent_negotiation import MultiAgentNegotiationArena


class MultiAgentNegotiationConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(16, ge=1)
    """Negotiations per training step."""
    group_size: int = Field(4, ge=2)
    """Negotiations about the same values, which are compared with each other."""
    agents: int = Field(3, ge=2, le=5)
    """How many share."""
    items: int = Field(4, ge=2, le=6)
    """How many items there are to share."""
    rounds: int = Field(3, ge=1)
    """Proposals after which a negotiation is cut off."""
    pareto_weight: float = Field(0.5, ge=0)
    """What a Pareto-optimal deal is worth to everybody; all items are worth 1."""


def make_arena(config: MultiAgentNegotiationConfig) -> MultiAgentNegotiationArena:
    """What is trained, or evaluated."""
    return MultiAgentNegotiationArena(
        config.batch_size,
        agents=config.agents,
        items=config.items,
        rounds=config.rounds,
        pareto_weight=config.pareto_weight,
        group_size=config.group_size,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(MultiAgentNegotiationConfig, argv, "selfplay train multi_agent_negotiation")
    train(make_arena(config), config, "multi_agent_negotiation")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
