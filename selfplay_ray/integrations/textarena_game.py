"""One of TextArena's games in play, without what is awkward about it.

Its games draw from Python's global random state, also in the middle of a game, and reseed it; some draw from
NumPy's. They tell everything said so far at every turn, or each thing once and it is gone; let an illegal move pass
once; and count one that a limit on turns ended as any other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from selfplay_ray.config_sources import suggestion
from selfplay_ray.errors import ConfigError, EpisodeError

YOUR_TURN = "It is your turn."  # where the game has nothing new to say


class Chance:
    """A global random state of one's own, Python's and NumPy's, for code that draws from those and reseeds them.

    They are the process's: whoever swaps them in gives them back before anybody else runs.
    """

    def __init__(self, seed: int) -> None:
        self._mine = (random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state())  # noqa: S311

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the global states are these; afterwards they are what they were."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        theirs = (random.getstate(), np.random.get_state())
        random.setstate(self._mine[0])
        np.random.set_state(self._mine[1])
        self._mine = theirs


class Game:
    """One game of ``env_id`` in play. ``options`` go to its constructor; ``mistakes`` is how many illegal moves in
    a row a player may take back.

    Raises:
        ConfigError: TextArena isn't installed, has no such game, or that isn't for so many players.
    """

    def __init__(
        self,
        env_id: str,
        players: int,
        seed: int,
        options: Mapping[str, Any] | None = None,
        mistakes: int = 0,
    ) -> None:
        self._chance = Chance(seed)
        with self._chance.in_place():  # importing TextArena reseeds, too
            self._env = _make(env_id, options or {})
            try:
                self._env.reset(num_players=players, seed=seed)
            except AssertionError as error:  # how its states refuse a number of players
                raise ConfigError(f"{env_id} can't be played by {players}: {error}") from None
        self._env.state.error_allowance = mistakes
        self._watch_turn_limit()
        self.done = False
        self.limit_reached = False

    @property
    def player(self) -> int:
        """Who moves next, which is not player 0 first, nor each in turn, in every game."""
        return int(self._env.state.current_player_id)

    def observe(self) -> str:
        """What the player whose turn it is has not heard yet; each thing is told once."""
        player, news = self._env.get_observation()
        names = self._env.state.role_mapping
        told = [
            message if sender < 0 else f"{names.get(sender, f'Player {sender}')}: {message}"
            for sender, message, _ in news
            if sender != player
        ]
        return "\n".join(text.strip() for text in told if text.strip()) or YOUR_TURN

    def move(self, action: str) -> bool:
        """Let the player whose turn it is move; whether that was legal."""
        player = self.player
        with self._chance.in_place():
            self.done, _ = self._env.step(action=action)
        state = self._env.state
        may_try_again = not self.done and state.error_count > 0
        return not (may_try_again or state.game_info[player]["invalid_move"])

    @property
    def forfeited_by(self) -> int | None:
        """Whose illegal move ended the game."""
        if not self.done:
            return None
        info: dict[int, Any] = self._env.state.game_info
        return next((player for player, about in info.items() if about["invalid_move"]), None)

    @property
    def reason(self) -> str:
        """Why it is over, in its own words."""
        info: dict[int, Any] = self._env.state.game_info
        return next((str(about["reason"]) for about in info.values() if about.get("reason")), "")

    def rewards(self) -> dict[int, float]:
        """What every player gets, once it is over.

        Raises:
            EpisodeError: the game has ended without saying so.
        """
        rewards, _ = self._env.close()
        if not rewards:
            raise EpisodeError(f"{self._env.env_id} ended without rewards")
        return {player: float(reward) for player, reward in rewards.items()}

    def _watch_turn_limit(self) -> None:
        """Take note when the game asks whether its limit on turns is reached, and it is."""
        state = self._env.state
        check = state.check_turn_limit

        def watched() -> bool:
            reached = bool(check())
            self.limit_reached = self.limit_reached or reached
            return reached

        state.check_turn_limit = watched


def _make(env_id: str, options: Mapping[str, Any]) -> Any:
    """The game without TextArena's wrappers, which repeat all that was said at every turn."""
    textarena = _textarena()
    known = textarena.envs.registration.ENV_REGISTRY
    if env_id not in known:
        raise ConfigError(f"TextArena has no game {env_id!r}{suggestion(env_id, known)}")
    try:
        env = textarena.make(env_id, **options)
    except TypeError as error:  # an option that its constructor doesn't have
        raise ConfigError(f"{env_id} can't be made with the options {dict(options)}: {error}") from None
    while isinstance(env, textarena.Wrapper):
        env = env.env
    return env


def _textarena() -> ModuleType:
    try:
        import textarena
    except ModuleNotFoundError as error:
        if error.name != "textarena":
            raise
        raise ConfigError(
            "TextArena isn't installed; its games come with an extra: pip install 'selfplay-ray[textarena]'"
        ) from None
    return textarena  # type: ignore[no-any-return]
