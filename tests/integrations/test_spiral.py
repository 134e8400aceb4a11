"""A mix of games: each is played, each player of each game has a baseline of its own, and the real model plays, too."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.credit import RAECredit
from selfplay_ray.errors import ConfigError
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.integrations.spiral import GAMES, SpiralArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Message, Rollout

pytest.importorskip("textarena")

TIC_TAC_TOE, KUHN, NEGOTIATION = GAMES


def scripted(**moves: Sequence[str]) -> MockInferenceClient:
    """Says each game's moves in turn; which game it is, the system prompt tells."""
    rest = {"cell": iter(moves.get("tic", ())), "check": iter(moves.get("kuhn", ()))}
    rest["Offer"] = iter(moves.get("trade", ()))

    def reply(messages: Sequence[Message]) -> str:
        return next(next(said) for word, said in rest.items() if word in messages[0]["content"])

    return MockInferenceClient(reply)


async def played(game: str, client: MockInferenceClient) -> Rollout:
    rollout = (await SpiralArena(3, client=client).run_episode(game, 7)).rollout
    assert rollout.error is None, rollout.error
    return rollout


async def test_tic_tac_toe():
    """Both play legal moves, 0.5 × 1; player 0 has the upper row."""
    rollout = await played(TIC_TAC_TOE, scripted(tic=["[0]", "[3]", "[1]", "[4]", "[2]"]))
    assert rollout.rewards == {"TicTacToe 0": 1.5, "TicTacToe 1": -0.5}


async def test_kuhn_poker_of_one_round():
    """Player 1 opens here, bets, and player 0 folds: it has lost the ante."""
    rollout = await played(KUHN, scripted(kuhn=["[bet]", "[fold]"]))
    assert rollout.rewards == {"KuhnPoker 0": -0.5, "KuhnPoker 1": 1.5}


async def test_a_negotiation():
    """Wheat is worth about 5 and ore about 40, to both: who gets an ore for a wheat has won."""
    trade = ["[Offer: 1 Wheat -> 1 Ore]", "[Accept]", "[Deny]", "[Deny]"]
    rollout = await played(NEGOTIATION, scripted(trade=trade))
    assert rollout.rewards == {"SimpleNegotiation 0": 1.5, "SimpleNegotiation 1": -0.5}


async def test_every_player_of_every_game_has_a_baseline_of_its_own():
    def client() -> MockInferenceClient:
        return scripted(
            tic=["[0]", "[3]", "[1]", "[4]", "[2]"],
            kuhn=["[bet]", "[fold]"],
            trade=["[Offer: 1 Wheat -> 1 Ore]", "[Accept]", "[Deny]", "[Deny]"],
        )

    arena = SpiralArena(3, client=client())
    credit = arena.credit_assigner
    assert isinstance(credit, RAECredit)
    assert credit.decay == 0.95
    (group,) = (await arena.step()).groups
    assert sorted(group.rewards) == sorted(arena.roles)
    assert credit.baseline(TIC_TAC_TOE, "TicTacToe 0") == pytest.approx(1.5)
    assert credit.baseline(KUHN, "KuhnPoker 0") == pytest.approx(-0.5)
    assert credit.baseline(NEGOTIATION, "SimpleNegotiation 1") == pytest.approx(-0.5)
    assert credit.baseline(KUHN, "TicTacToe 0") == 0.0


def test_games_take_turns_and_deals_come_from_the_seed():
    def batch(seed: int) -> list[tuple[str, int]]:
        arena = SpiralArena(7)
        arena.configure(RunConfig(seed=seed, batch_size=7))
        return [(request.episode_type, request.artifact) for request in arena.next_batch()]

    first = batch(0)
    assert [game for game, _ in first] == [*GAMES, *GAMES, GAMES[0]]
    assert first == batch(0) != batch(1)


def test_a_game_that_there_is_not_is_named():
    with pytest.raises(ConfigError, match="TextArena has no game 'Chess960'"):
        SpiralArena(3, ["Chess960"])


async def test_the_real_model_plays_two_of_them_and_nobody_elses_chance_is_touched(smollm2: Path):
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), repr(np.random.get_state())
    engine = Engine(smollm2)
    try:
        arena = SpiralArena(4, [TIC_TAC_TOE, KUHN], client=EngineClient.for_engine(engine))
        step = await arena.step()
    finally:
        engine.close()
    assert [result.rollout.error for result in step.results] == [None] * 4
    for result in step.results:
        record = result.rollout.extras["game"]
        assert sum(record.moves.values()) == len(result.rollout.steps) > 0
        assert sum(record.rewards.values()) == 0
    assert (random.getstate(), repr(np.random.get_state())) == before
