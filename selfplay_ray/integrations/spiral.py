"""SPIRAL: self-play over a mix of TextArena's zero-sum games (`pip install 'selfplay-ray[textarena]'`).

Liu et al. 2025, SPIRAL, arXiv:2506.24119: one model plays both sides of tic-tac-toe, Kuhn poker and a negotiation,
and each player of each game is compared with its own past (role-conditioned advantage estimation, decay 0.95), because
first and second player, and one game and another, are not equally hard. What a move, a forfeit and a truncation are is
as in :mod:`selfplay_ray.integrations.textarena`; the negotiation ends at its limit on turns by its own rules, so that
there "truncated" is how all end that aren't forfeited, and the rewards say who won.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import RAECredit
from selfplay_ray.integrations.textarena import TextArenaEpisode
from selfplay_ray.types import EpisodeRequest, Role

GAMES = ("TicTacToe-v0", "KuhnPoker-v0", "SimpleNegotiation-v0")
FORMS = {
    "TicTacToe-v0": "Answer with the number of a free cell in square brackets, as in [4], and nothing else.",
    "KuhnPoker-v0": "Answer with one of [check], [bet], [call] or [fold], and nothing else.",
    "SimpleNegotiation-v0": "Answer with [Offer: 2 Wheat -> 1 Ore], [Accept] or [Deny], and nothing else.",
}
"""How to answer; the rest the games say themselves."""
ANY_FORM = "Answer with your move in square brackets, and nothing else."
OPTIONS: dict[str, dict[str, Any]] = {
    "KuhnPoker-v0": {"max_rounds": 1},
    "SimpleNegotiation-v0": {"max_turns": 3},
}
"""Short games: what the constructors are told."""


class SpiralArena(Arena):
    """``batch_size`` games a step, of all ``games`` in turn. Every player of every game is a role, so that each has a
    baseline, and rewards, of its own; the model is the same.

    Raises:
        ConfigError: TextArena isn't installed, or has no such game for two.
    """

    def __init__(
        self,
        batch_size: int,
        games: Sequence[str] = GAMES,
        *,
        rae_decay: float = 0.95,
        max_turns: int = 10,
        legality_weight: float = 0.5,
        max_tokens: int = 16,
        game_options: Mapping[str, Mapping[str, Any]] = OPTIONS,
        **options: Any,
    ) -> None:
        options.setdefault("credit_assigner", RAECredit(rae_decay))
        super().__init__(batch_size=batch_size, **options)
        self.games = tuple(games)
        for game in self.games:
            players = [f"{game.partition('-')[0]} {player}" for player in range(2)]
            for player in players:
                self.add_role(Role(player, FORMS.get(game, ANY_FORM), max_tokens=max_tokens))
            episode = TextArenaEpisode(
                game,
                players,
                max_turns=max_turns,
                legality_weight=legality_weight,
                options=game_options.get(game),
            )
            self.add_episode(game, episode)

    def get_batch(self) -> list[EpisodeRequest]:
        return [
            EpisodeRequest(self.games[index % len(self.games)], self.rng.getrandbits(31))
            for index in range(self.batch_size)
        ]
