"""TextArena's games for one or two players as episodes (`pip install 'selfplay-ray[textarena]'`).

Guertler et al. 2025, TextArena. A player hears what the game tells it and the moves of the other, not how the
other came to them. A move that breaks the rules ends the game as a *forfeit*, which is kept apart from a loss,
and earns the other nothing: who is paid for surviving a mistake learns to wait for one. A game that a limit on
turns ended is *truncated*, neither won nor lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit, RAECredit
from selfplay_ray.episode import ChatEpisode, EpisodeState
from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.textarena_game import Game
from selfplay_ray.rubric import RewardFn, Rubric
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import EpisodeRequest, Role, Rollout

Ending = Literal["won", "lost", "drawn", "forfeited", "walkover", "truncated"]
ReadMove = Callable[[str], str | None]

BRACKETED = re.compile(r"\[([^\[\]\n]{1,200})\]")


def last_bracketed(text: str) -> str | None:
    """The move in ``text``: what is in its last square brackets. None if there are none.

    Alone it means the same to every game; of a text with several, some take the first and some the last.
    """
    moves = BRACKETED.findall(text)
    return f"[{moves[-1].strip()}]" if moves else None


def whole_text(text: str) -> str | None:
    """All of ``text``, for games that are conversations. None if there is none."""
    return text.strip() or None


@dataclass(frozen=True, slots=True)
class GameRecord:
    """How a game went. Everything is keyed by role.

    ``rewards`` are the game's own, 0 for everybody in a game that was cut off. ``moves`` counts what each player
    answered, ``legal`` what of it the game accepted, ``unreadable`` where there was no move in it.
    """

    rewards: dict[str, float]
    moves: dict[str, int]
    legal: dict[str, int]
    unreadable: dict[str, int]
    forfeited_by: str | None
    truncated: bool
    reason: str

    def ending(self, role_id: str) -> Ending:
        """What it came to for ``role_id``."""
        if self.truncated:
            return "truncated"
        if self.forfeited_by is not None:
            return "forfeited" if role_id == self.forfeited_by else "walkover"
        reward = self.rewards[role_id]
        return "won" if reward > 0 else "lost" if reward < 0 else "drawn"


@dataclass(kw_only=True)
class GameState(EpisodeState):
    """A chat that is a game, with what each role did in it."""

    game: Game
    moves: dict[str, int]
    legal: dict[str, int]
    unreadable: dict[str, int]


def _of_game(state: EpisodeState) -> GameState:
    assert isinstance(state, GameState)
    return state


def outcome(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """What the game gave each player; after a forfeit nobody gets more than nothing."""
    record: GameRecord = rollout.extras["game"]
    if record.forfeited_by is None:
        return record.rewards
    return {role: min(reward, 0.0) for role, reward in record.rewards.items()}


def legality(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of its moves that were legal, for who made any: something to start from for a small model."""
    record: GameRecord = rollout.extras["game"]
    return {role: record.legal[role] / moves for role, moves in record.moves.items() if moves}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """The share of its answers in which there was no move."""
    record: GameRecord = rollout.extras["game"]
    return {role: record.unreadable[role] / moves for role, moves in record.moves.items() if moves}


def counted(ending: Ending) -> RewardFn:
    """1 for whom the game came to ``ending``, 0 for others: as a metric's mean, how often it does."""

    def count(rollout: Rollout, arena: Arena) -> dict[str, float]:
        record: GameRecord = rollout.extras["game"]
        return {role: float(record.ending(role) == ending) for role in record.rewards}

    count.__name__ = ending
    return count


class TextArenaEpisode(ChatEpisode):
    """A game of ``env_id`` between ``players``, the roles that are its players 0 and 1, or of one alone.

    A request's artifact is the game's seed; without one it is drawn. ``read_move`` finds the move in what a player
    answers, ``mistakes`` is how many illegal ones in a row it may take back, and ``max_turns`` bounds all answers.
    A player's reward is ``outcome`` + ``legality_weight`` × ``legality``. Of the metrics, won / (won + lost + drawn)
    is the win rate among games that were played to their end, and won + walkover that with forfeits.

    Raises:
        ConfigError: TextArena isn't installed, has no such game, or that isn't for so many players.
    """

    def __init__(
        self,
        env_id: str,
        players: Sequence[str],
        *,
        max_turns: int = 64,
        mistakes: int = 0,
        legality_weight: float = 0.5,
        options: Mapping[str, Any] | None = None,
        read_move: ReadMove = last_bracketed,
    ) -> None:
        super().__init__(max_turns)
        if len(players) not in (1, 2):
            raise ConfigError(
                f"{env_id} was given {len(players)} players; games of one and two are played here"
            )
        self.env_id = env_id
        self.players = tuple(players)
        self.mistakes = mistakes
        self.options = dict(options or {})
        self.read_move = read_move
        endings = [counted(ending) for ending in get_args(Ending)]
        self.rubric = Rubric(
            [outcome, legality, unreadable, *endings], [1.0, legality_weight, 0.0, *[0.0] * len(endings)]
        )
        self._new_game(seed=0)  # so that what can't be played is known before anything starts

    def init_state(self, state: EpisodeState, artifact: int | None) -> GameState:
        seed = state.rng.getrandbits(31) if artifact is None else artifact
        none = dict.fromkeys(self.players, 0)
        return GameState(game=self._new_game(seed), moves={**none}, legal={**none}, unreadable={**none})

    def get_initial_role(self, artifact: int | None, state: EpisodeState) -> str:
        return self.get_next_role(artifact, state)

    def get_initial_prompt(self, arena: Arena, artifact: int | None, state: EpisodeState) -> str:
        return ""

    def get_next_role(self, artifact: int | None, state: EpisodeState) -> str:
        return self.players[_of_game(state).game.player]

    def get_observation(self, role_id: str, arena: Arena, artifact: int | None, state: EpisodeState) -> str:
        return _of_game(state).game.observe()

    def format_heard(self, speaker: str, text: str, listener: str) -> str:
        return ""  # it is the game that says what was played

    async def env_response(self, arena: Arena, artifact: int | None, state: EpisodeState) -> str:
        """Play the move that was just said."""
        play, role = _of_game(state), state.current_role
        move = self.read_move(state.last_completion_text)
        legal = play.game.move(move or "") and move is not None
        play.moves[role] += 1
        play.legal[role] += legal
        play.unreadable[role] += move is None
        play.truncated = play.game.limit_reached
        return ""

    def is_done(self, artifact: int | None, state: EpisodeState) -> bool:
        return _of_game(state).game.done

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        play, game = _of_game(state), _of_game(state).game
        rewards = game.rewards() if game.done else {}
        forfeited_by = game.forfeited_by
        record = GameRecord(
            rewards={role: rewards.get(player, 0.0) for player, role in enumerate(self.players)},
            moves=play.moves,
            legal=play.legal,
            unreadable=play.unreadable,
            forfeited_by=None if forfeited_by is None else self.players[forfeited_by],
            truncated=play.truncated,
            reason=game.reason,
        )
        return {"game": record}

    def _new_game(self, seed: int) -> Game:
        return Game(self.env_id, len(self.players), seed, self.options, self.mistakes)


class TextArenaArena(Arena):
    """Self-play of one game; all players share the model, and are trained on what they said.

    Of a game for two, a role is compared with what it has got so far (role-conditioned advantage estimation; Liu et
    al. 2025, SPIRAL): within a group the rewards of a zero-sum game say nothing. Of a game for one, ``group_size``
    play the same deal, and are compared with each other. ``options`` go to the episode.
    """

    def __init__(
        self,
        batch_size: int,
        env_id: str,
        players: int,
        *,
        group_size: int = 8,
        system_prompt: str = "",
        max_tokens: int | None = None,
        client: ModelClient | None = None,
        **options: Any,
    ) -> None:
        credit = RAECredit() if players > 1 else GRPOCredit(normalize=True)
        super().__init__(client, credit, batch_size=batch_size)
        self.group_size = group_size if players == 1 else 1
        roles = [f"Player {number}" for number in range(players)]
        for role in roles:
            self.add_role(Role(role, system_prompt, max_tokens=max_tokens))
        self.add_episode("game", TextArenaEpisode(env_id, roles, **options))

    def get_batch(self) -> list[EpisodeRequest]:
        deals = [self.rng.getrandbits(31) for _ in range(0, self.batch_size, self.group_size)]
        groups = [index // self.group_size for index in range(self.batch_size)]
        compared = self.group_size > 1
        return [
            EpisodeRequest("game", deals[g], group=f"{g}: {deals[g]}" if compared else None) for g in groups
        ]
