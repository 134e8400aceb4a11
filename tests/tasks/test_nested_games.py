"""Nested games: questions, duels, what a Host earns, and who is compared with whom, by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.nested_games import ANSWERS, GAMES, NestedGamesArena, read_answer, read_pick
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        ("add 2", ("add", 2)),
        (" Larger, level 4.\n", ("larger", 4)),
        ("last: 1", ("last", 1)),
        ("add 5", None),
        ("add 22", None),
        ("chess 1", None),
        ("add 1 or last 2", None),
        ("add", None),
        ("", None),
    ],
)
def test_a_pick_is_a_game_and_a_level(text: str, pick: tuple[str, int] | None):
    assert read_pick(text) == pick


@pytest.mark.parametrize(
    ("text", "game", "answer"),
    [
        ("5 + 6 = 11.", "add", "11"),
        ("eleven", "add", None),
        ("The letter is k.", "last", "k"),
        ("12", "last", None),
        ("", "larger", None),
    ],
)
def test_an_answer_is_the_last_that_could_be_one(text: str, game: str, answer: str | None):
    assert read_answer(text, game) == answer


def test_the_games_are_what_they_say():
    """The right answers, worked out from the questions in another way."""
    for seed in range(20):
        for level in (1, 2, 3, 4):
            asked, right = GAMES["add"](level, random.Random(seed))
            numbers = [int(word) for word in asked.rstrip("?").split() if word.isdigit()]
            assert (len(numbers), sum(numbers)) == (level + 1, int(right))
            asked, right = GAMES["last"](level, random.Random(seed))
            letters = asked.partition(": ")[2].rstrip("?").split()
            assert len(letters) == 6
            assert letters.index(right) == 5 - level
            asked, right = GAMES["larger"](level, random.Random(seed))
            numbers = [int(word) for word in asked.partition(": ")[2].rstrip("?").split(", ")]
            assert {len(str(number)) for number in numbers} == {level}
            assert sorted(numbers)[-1] == int(right)


def test_the_examples_are_right():
    for (asked, answer), game in zip(ANSWERS, GAMES, strict=True):
        assert read_answer(answer, game) == answer, asked


class ScriptedTable:
    """The Host says ``pick``; in each duel First and Second are right as ``rounds`` has it."""

    def __init__(self, pick: str, rounds: Sequence[str] = ()) -> None:
        self.pick = pick
        self.said = iter([player for one in rounds for player in one])

    def __call__(self, messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked.startswith("Pick"):
            return self.pick
        right = max(int(word.strip(",?")) for word in asked.split() if word.strip(",?").isdigit())
        return {"r": str(right), "w": "0", "?": "no idea"}[next(self.said)]


async def hosted(pick: str, *rounds: str) -> GenerateResult:
    client = MockInferenceClient(ScriptedTable(pick, rounds))
    arena = NestedGamesArena(2, duels=len(rounds) or 4, client=client)
    result = await arena.run_episode("host", ["add 1", "last 2", "larger 3"])
    assert [rollout.error for rollout in result.all_rollouts() if rollout.error] == []
    return result


@pytest.mark.parametrize(
    ("duel", "first", "unreadable"),
    [("rw", 1.0, 0.0), ("wr", -1.0, 0.0), ("rr", 0.0, 0.0), ("ww", 0.0, 0.0), ("r?", 1.0, 1.0)],
)
async def test_a_duel_is_zero_sum(duel: str, first: float, unreadable: float):
    (child,) = (await hosted("larger 2", duel)).children
    assert child.rewards == {"First": first, "Second": -first}
    assert child.rollout.metrics["unreadable/Second"] == unreadable


@pytest.mark.parametrize(
    ("rounds", "reward", "decided"),
    [
        (("rw", "wr", "rw", "wr"), 1.0, 1.0),  # 2 × min(2, 2) / 4
        (("rw", "wr", "rr", "ww"), 0.5, 0.5),  # 2 × min(1, 1) / 4
        (("rw", "rw", "rw", "wr"), 0.5, 1.0),  # 2 × min(3, 1) / 4
        (("rw", "rw", "rw", "rw"), 0.0, 1.0),  # one side always wins
        (("rr", "rr", "rr", "rr"), 0.0, 0.0),  # too easy
        (("ww", "??", "ww", "ww"), 0.0, 0.0),  # too hard
    ],
)
async def test_a_host_earns_by_games_that_are_decided_and_close(
    rounds: tuple[str, ...], reward: float, decided: float
):
    result = await hosted("larger 2", *rounds)
    assert result.rewards == {"Host": reward}
    assert result.rollout.metrics["decided"] == decided
    assert result.rollout.extras["pick"] == ("larger", 2)


async def test_a_pick_that_cannot_be_read_is_a_forfeit_and_nobody_plays():
    result = await hosted("chess 3")
    assert (result.rewards, result.children) == ({"Host": -0.5}, [])
    assert result.rollout.metrics["forfeit/Host"] == 1.0


async def test_players_are_compared_with_those_below_the_same_host():
    """Below the first Host First has 1, 0: ±0.5 from the mean 0.5. Below the second 0, 0: nothing to learn, though
    the mean over both Hosts is 0.25. The Hosts themselves: 0 and 0."""
    client = MockInferenceClient(ScriptedTable("larger 1", ["rw", "rr", "rr", "rr"]))
    arena = NestedGamesArena(2, duels=2, client=client)
    arena.get_batch = lambda: [EpisodeRequest("host", ["add 1"])] * 2  # type: ignore[method-assign]
    step = await arena.step()
    below = [[child.rollout.advantages for child in tree.children] for tree in step.results]
    first = [{player: round(value, 3) for player, value in one.items()} for one in below[0]]
    assert first == [{"First": 1.0, "Second": -1.0}, {"First": -1.0, "Second": 1.0}]
    assert below[1] == [{"First": 0.0, "Second": 0.0}] * 2
    assert [tree.rollout.advantages["Host"] for tree in step.results] == [0.0, 0.0]


def test_a_batch_shows_every_host_picks_of_its_own_and_depends_on_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = NestedGamesArena(8)
        arena.configure(RunConfig(seed=seed, batch_size=8))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0) != batch(1)
    assert all(read_pick(pick) for request in first for pick in request.artifact)
    assert len({tuple(request.artifact) for request in first}) > 1
