"""Ten of TextArena's games to their ends: by scripts, each outcome worked out by hand, and by the real model."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.integrations.textarena import TextArenaArena
from selfplay_ray.testing import MockInferenceClient

pytest.importorskip("textarena")

HANOI = {"num_disks": 2, "max_turns": 10}
SAME = ["[0]", "[1]", "[0]", "[1]", "[0]", "[1]", "[0]"]  # player 0 has four in column 0
ROW = ["[0]", "[3]", "[1]", "[4]", "[2]"]  # player 0 has the upper row

GAMES = [
    ("TicTacToe-v0", 2, {}, ROW, ("won", "lost")),
    ("WildTicTacToe-v0", 2, {}, ["[X 0]", "[O 4]", "[X 1]", "[X 2]"], ("lost", "won")),  # a row of both's
    ("ConnectFour-v0", 2, {}, SAME, ("won", "lost")),
    ("Nim-v0", 2, {"piles": [1, 2]}, ["[1 1]", "[0 1]", "[1 1]"], ("won", "lost")),  # the last one wins
    ("KuhnPoker-v0", 2, {"max_rounds": 1}, ["[bet]", "[fold]"], ("lost", "won")),  # player 1 opens
    ("IteratedRockPaperScissors-v0", 2, {"num_rounds": 1}, ["[rock]", "[scissors]"], ("won", "lost")),
    ("IteratedMatchingPennies-v0", 2, {"num_rounds": 2}, ["[h]", "[h]", "[h]", "[t]"], ("drawn", "drawn")),
    (
        "IteratedPrisonersDilemma-v0",
        2,
        {"num_rounds": 1},
        ["[let us cooperate]", "[yes]", "[defect]", "[cooperate]"],
        ("won", "lost"),
    ),
    # Ore is worth about eight times as much as wheat. It ends at its limit on turns, by its own rules.
    (
        "SimpleNegotiation-v0",
        2,
        {"max_turns": 3},
        ["[Offer: 1 Wheat -> 1 Ore]", "[Accept]", "[Deny]", "[Deny]"],
        ("truncated", "truncated"),
    ),
    ("TowerOfHanoi-v0", 1, HANOI, ["[A B]", "[A C]", "[B C]"], ("won",)),
]


@pytest.mark.parametrize(
    ("env_id", "players", "options", "moves", "endings"), GAMES, ids=[g[0] for g in GAMES]
)
async def test_a_game_is_played_to_its_end(
    env_id: str, players: int, options: dict[str, object], moves: list[str], endings: tuple[str, ...]
):
    random.seed(11)
    np.random.seed(11)
    before = random.getstate(), repr(np.random.get_state())
    rest = iter(moves)
    client = MockInferenceClient(lambda messages: next(rest))
    arena = TextArenaArena(1, env_id, players, client=client, options=options)
    rollout = (await arena.run_episode("game", 3)).rollout
    assert rollout.error is None, rollout.error
    record = rollout.extras["game"]
    roles = [f"Player {player}" for player in range(players)]
    assert tuple(record.ending(role) for role in roles) == endings
    assert record.legal == record.moves
    assert sum(record.moves.values()) == len(moves)
    assert players == 1 or sum(record.rewards.values()) == 0
    assert list(rest) == []  # it ended with the last move, not before
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_there_are_ten():
    assert len({game for game, *_ in GAMES}) == 10


@pytest.mark.timeout(900)
async def test_the_real_model_plays_all_ten_to_an_end(smollm2: Path):
    """Mostly a forfeit: what a small model says is rarely a move. What it says is trained on whatever it is."""
    random.seed(11)
    np.random.seed(11)
    before = random.getstate(), repr(np.random.get_state())
    endings = {}
    with Engine(smollm2) as engine:
        for env_id, players, options, _, _ in GAMES:
            arena = TextArenaArena(
                1,
                env_id,
                players,
                group_size=1,
                max_tokens=8,
                max_turns=4,
                client=EngineClient.for_engine(engine),
                options=options,
            )
            step = await arena.step()
            for result in step.results:
                rollout = result.rollout
                assert rollout.error is None, f"{env_id}: {rollout.error}"
                record = rollout.extras["game"]
                assert sum(record.moves.values()) == len(rollout.steps) > 0
                endings[env_id] = [record.ending(role) for role in record.moves]
            records = [record for group in step.groups for record in group.records]
            assert len(records) == sum(len(result.rollout.steps) for result in step.results)
            assert all(len(record.logprobs) == len(record.completion_token_ids) > 0 for record in records)
    assert all(endings[env_id] for env_id, *_ in GAMES)
    assert (random.getstate(), repr(np.random.get_state())) == before
