"""Train both players of several of TextArena's zero-sum games (`pip install 'selfplay-ray[textarena]'`).

selfplay train spiral --num-steps 30
selfplay train spiral --games TicTacToe-v0 ConnectFour-v0
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.integrations.spiral import GAMES, SpiralArena


class SpiralConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(12, ge=1)
    """Games per training step."""
    games: tuple[str, ...] = Field(GAMES, min_length=1)
    """TextArena's ids of the games, which are played in turn."""
    rae_decay: float = Field(0.95, ge=0, lt=1)
    """How slowly a player's baseline follows its rewards."""
    max_turns: int = Field(10, ge=1)
    """Answers after which a game is cut off."""
    legality_weight: float = Field(0.5, ge=0)
    """What it is worth that all of a player's moves are legal; winning is worth 1."""
    max_tokens: int = Field(16, ge=1)
    """Most tokens in one answer."""


def make_arena(config: SpiralConfig) -> SpiralArena:
    """What is trained, or evaluated."""
    return SpiralArena(
        config.batch_size,
        config.games,
        rae_decay=config.rae_decay,
        max_turns=config.max_turns,
        legality_weight=config.legality_weight,
        max_tokens=config.max_tokens,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(SpiralConfig, argv, "selfplay train spiral")
    train(make_arena(config), config, "spiral")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
