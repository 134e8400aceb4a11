"""Train the players of a game of TextArena's (`pip install 'selfplay-ray[textarena]'`).

selfplay train textarena --num-steps 30
selfplay train textarena --game KuhnPoker-v0 --players 2 --system-prompt "Answer with [check], [bet], [call] or [fold]."
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from selfplay_ray.actors.run import train
from selfplay_ray.command import run_command
from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import load_config
from selfplay_ray.integrations.textarena import TextArenaArena

GAME = "GuessTheNumber-v0"
GAME_OPTIONS = {"max_number": 10}


class TextArenaConfig(RunConfig):
    """What this task adds to a run's configuration."""

    batch_size: int = Field(32, ge=1)
    """Games per training step."""
    group_size: int = Field(8, ge=2)
    """Games of each deal, which are compared with each other, where there is one player."""
    game: str = GAME
    """TextArena's id of the game."""
    players: int = Field(1, ge=1, le=2)
    """How many play it."""
    game_options: dict[str, int | float | str | bool] | None = None
    """What the game's constructor is told; unset, the default game is about the numbers from 1 to 10."""
    system_prompt: str = "Answer with your move in square brackets, as in [7], and nothing else."
    """What the players are told besides the game's own rules."""
    max_turns: int = Field(5, ge=1)
    """Answers after which a game is cut off."""
    legality_weight: float = Field(0.5, ge=0)
    """What it is worth that all of a player's moves are legal; winning is worth 1."""
    max_tokens: int = Field(12, ge=1)
    """Most tokens in one answer."""


def make_arena(config: TextArenaConfig) -> TextArenaArena:
    """What is trained, or evaluated."""
    usual = GAME_OPTIONS if config.game == GAME else {}
    return TextArenaArena(
        config.batch_size,
        config.game,
        config.players,
        group_size=config.group_size,
        system_prompt=config.system_prompt,
        max_tokens=config.max_tokens,
        max_turns=config.max_turns,
        legality_weight=config.legality_weight,
        options=usual if config.game_options is None else config.game_options,
    )


def main(argv: Sequence[str]) -> int:
    """Run the job with ``argv``, and return its exit code."""
    config = load_config(TextArenaConfig, argv, "selfplay train textarena")
    train(make_arena(config), config, "textarena")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
