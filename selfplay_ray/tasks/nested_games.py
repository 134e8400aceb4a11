"""Nested games: a Host picks a game and its level, and duels of that game show how well it chose.

In a duel two Players answer one question without hearing each other; who is right where the other is wrong has won
(+1, -1), else it is a draw. An answer that can't be read is wrong, and counted apart. The Host earns 2 min(w, l) / n,
for w duels that one side has won and l that the other has, of n: 1 where all are decided and neither side is ahead, 0
for a game that is too easy, too hard, or unfair. A pick that can't be read is a *forfeit*.

The Players of a Host are compared with each other and with nobody else's, and Hosts with Hosts: what came out of
another Host's duels says nothing about either.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

PLAYERS = ("First", "Second")
LEVELS = range(1, 5)
FORFEIT = -0.5
ASKED = "Pick a game and a level: add, last or larger; 1 to 4."
WORD = re.compile(r"\w+")

Question = tuple[str, str]
"""What is asked, and the right answer."""


def add(level: int, rng: random.Random) -> Question:
    """As many one-digit numbers as the level says, and one more."""
    numbers = [rng.randint(1, 9) for _ in range(level + 1)]
    return f"What is {' + '.join(map(str, numbers))}?", str(sum(numbers))


def last(level: int, rng: random.Random) -> Question:
    """The last but some of six letters."""
    letters = rng.sample("bcdfghjklmnp", 6)
    return f"Which letter comes {level} before the end of: {' '.join(letters)}?", letters[-1 - level]


def larger(level: int, rng: random.Random) -> Question:
    """The largest of some numbers of as many digits as the level says."""
    numbers = rng.sample(range(10 ** (level - 1), 10**level), 3)
    return f"Which is the largest: {', '.join(map(str, numbers))}?", str(max(numbers))


GAMES: dict[str, Callable[[int, random.Random], Question]] = {"add": add, "last": last, "larger": larger}
PICK = re.compile(rf"\s*({'|'.join(GAMES)})[ ,:]+(?:level )?([1-4])\W*", re.IGNORECASE)
ANSWERS = (
    ("What is 2 + 1?", "3"),
    ("Which letter comes 1 before the end of: x y z?", "y"),
    ("Which is the largest: 7, 3, 5?", "7"),
)


def read_pick(text: str) -> tuple[str, int] | None:
    """The game and the level; None if ``text`` is anything else."""
    found = PICK.fullmatch(text)
    return (found[1].lower(), int(found[2])) if found else None


def read_answer(text: str, game: str) -> str | None:
    """The last number or single letter in ``text``, as the game has it."""
    wanted = str.isdigit if game != "last" else lambda word: len(word) == 1 and word.isalpha()
    words = [word for word in WORD.findall(text.lower()) if wanted(word)]
    return words[-1] if words else None


def win(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """+1 for being right where the other is wrong, -1 for the other; 0 for a draw."""
    first, second = (rollout.extras["right"][player] for player in PLAYERS)
    return {"First": float(first - second), "Second": float(second - first)}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for an answer that is none."""
    return {player: float(said is None) for player, said in rollout.extras["answers"].items()}


def closeness(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """2 min(w, l) / n."""
    outcomes = rollout.extras["outcomes"]
    if not outcomes:
        return {"Host": 0.0}
    rollout.metrics["decided"] = sum(outcome != 0 for outcome in outcomes) / len(outcomes)
    return {"Host": 2 * min(outcomes.count(1), outcomes.count(-1)) / len(outcomes)}


def forfeit(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 for a pick that can't be read."""
    return {"Host": float(rollout.extras["pick"] is None)}


class DuelEpisode(Episode):
    """The artifact is a game and a level; the question is drawn."""

    rubric = Rubric([win, unreadable], [1.0, 0.0])

    async def rollout(self, arena: Arena, artifact: tuple[str, int], state: EpisodeState) -> EpisodeState:
        game, level = artifact
        question, right = GAMES[game](level, state.rng)
        asked = [self.call_model(player, question, arena, examples=ANSWERS) for player in PLAYERS]
        said = await asyncio.gather(*asked)
        answers = {player: read_answer(reply.text, game) for player, reply in zip(PLAYERS, said, strict=True)}
        state.data = {
            "answers": answers,
            "right": {player: answer == right for player, answer in answers.items()},
        }
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return state.data


class HostEpisode(Episode):
    """The artifact is what the Host is shown as picks of others."""

    rubric = Rubric([closeness, forfeit], [1.0, FORFEIT])

    def __init__(self, duels: int) -> None:
        self.duels = duels

    async def rollout(self, arena: Arena, artifact: list[str], state: EpisodeState) -> EpisodeState:
        shown = [(ASKED, pick) for pick in artifact]
        pick = read_pick((await self.call_model("Host", ASKED, arena, examples=shown)).text)
        state.data["pick"] = pick
        if pick is not None:
            state.child_results = await arena.generate_rollouts([EpisodeRequest("duel", pick)] * self.duels)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {
            "pick": state.data["pick"],
            "outcomes": [int(child.rewards.get("First", 0)) for child in state.child_results],
        }


class NestedGamesArena(Arena):
    """``batch_size`` Hosts a step, each shown picks of its own, and ``duels`` below each."""

    def __init__(self, batch_size: int, duels: int = 6, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role("Host", temperature=0.7, max_tokens=6))
        for player in PLAYERS:
            self.add_role(Role(player, max_tokens=10))
        self.add_episode("host", HostEpisode(duels))
        self.add_episode("duel", DuelEpisode())

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("host", [self.pick() for _ in range(3)]) for _ in range(self.batch_size)]

    def pick(self) -> str:
        return f"{self.rng.choice(list(GAMES))} {self.rng.choice(LEVELS)}"
