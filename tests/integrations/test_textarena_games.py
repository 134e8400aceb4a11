"""TextArena's games, played by hand: what is a win, a draw, a forfeit, and what is neither."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from selfplay_ray.credit import GRPOCredit, RAECredit
from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.textarena import GameRecord, TextArenaArena, last_bracketed, whole_text
from selfplay_ray.integrations.textarena_game import Chance, Game
from selfplay_ray.runtime import LocalRuntime
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import GenerateResult, Rollout

pytest.importorskip("textarena")

TIC_TAC_TOE, KUHN, NUMBER = "TicTacToe-v0", "KuhnPoker-v0", "GuessTheNumber-v0"


def scripted(answers: Sequence[str]) -> MockInferenceClient:
    """Says ``answers`` in turn, whoever is asked."""
    rest = iter(answers)
    return MockInferenceClient(lambda messages: next(rest))


async def played(
    env_id: str, *answers: str, players: int = 2, deal: int | None = 0, **options: Any
) -> GenerateResult:
    arena = TextArenaArena(1, env_id, players, client=scripted(answers), **options)
    result = await arena.run_episode("game", deal)
    assert result.rollout.error is None, result.rollout.error
    return result


def record(rollout: Rollout) -> GameRecord:
    return rollout.extras["game"]


def number_of(deal: int, largest: int = 20) -> int:
    """The number to guess: the game seeds with the deal and draws once."""
    return random.Random(deal).randint(1, largest)


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("[4]", "[4]"),
        ("I could [check] or [bet]; I [ fold ].", "[fold]"),
        ("check", None),
        ("[check", None),
        ("[]", None),
        ("[two\nlines]", None),
        ("[" + "x" * 201 + "]", None),
        ("", None),
    ],
)
def test_a_move_is_what_is_in_the_last_brackets(text: str, move: str | None):
    assert last_bracketed(text) == move


def test_a_conversation_is_all_text():
    assert whole_text(" hello [x] ") == "hello [x]"
    assert whole_text(" \n") is None


async def test_a_win_is_the_others_loss():
    """Player 0 takes the upper row: 0, 1, 2. All moves are legal, so 1 + 0.5 and -1 + 0.5."""
    rollout = (await played(TIC_TAC_TOE, "[0]", "[3]", "[1]", "[4]", "[2]")).rollout
    game = record(rollout)
    assert game.rewards == {"Player 0": 1.0, "Player 1": -1.0}
    assert rollout.rewards == {"Player 0": 1.5, "Player 1": -0.5}
    assert (game.ending("Player 0"), game.ending("Player 1")) == ("won", "lost")
    assert (game.moves, game.legal) == ({"Player 0": 3, "Player 1": 2},) * 2
    assert game.reason == "Player 0 has won!"
    assert rollout.metrics["won/Player 0"] == rollout.metrics["lost/Player 1"] == 1.0
    assert rollout.metrics["won/Player 1"] == rollout.metrics["forfeited/Player 1"] == 0.0


async def test_a_draw_is_worth_nothing():
    """Player 0 ends with 0, 2, 3, 7, 8 and player 1 with 1, 4, 5, 6: no row, column or diagonal."""
    moves = [f"[{square}]" for square in (0, 1, 2, 4, 3, 5, 7, 6, 8)]
    rollout = (await played(TIC_TAC_TOE, *moves, legality_weight=0.0)).rollout
    assert rollout.rewards == {"Player 0": 0.0, "Player 1": 0.0}
    assert record(rollout).ending("Player 0") == record(rollout).ending("Player 1") == "drawn"


@pytest.mark.parametrize(("answer", "unreadable"), [("[0]", 0), ("[9]", 0), ("the centre", 1), ("", 1)])
async def test_an_illegal_move_is_a_forfeit_and_pays_nobody(answer: str, unreadable: int):
    """Player 0 holds square 0. Player 1's only move is illegal: -1 + 0.5 × 0; player 0 gets 0 + 0.5 × 1 / 1."""
    rollout = (await played(TIC_TAC_TOE, "[0]", answer)).rollout
    game = record(rollout)
    assert game.rewards == {"Player 0": 1.0, "Player 1": -1.0}  # as the game has it
    assert rollout.rewards == {"Player 0": 0.5, "Player 1": -1.0}
    assert (game.ending("Player 0"), game.ending("Player 1")) == ("walkover", "forfeited")
    assert game.legal == {"Player 0": 1, "Player 1": 0}
    assert game.unreadable == {"Player 0": 0, "Player 1": unreadable}
    assert rollout.metrics["unreadable/Player 1"] == unreadable
    assert rollout.metrics["lost/Player 1"] == rollout.metrics["won/Player 0"] == 0.0


async def test_an_answer_without_a_move_is_not_legal_where_the_game_takes_any():
    """Before they decide, prisoners talk: saying nothing is fine with the game."""
    answers = ("no brackets", "[let us cooperate]", "[defect]", "[cooperate]")
    rollout = (await played("IteratedPrisonersDilemma-v0", *answers, options={"num_rounds": 1})).rollout
    assert record(rollout).legal == {"Player 0": 1, "Player 1": 2}
    assert record(rollout).unreadable == {"Player 0": 1, "Player 1": 0}
    assert record(rollout).ending("Player 0") == "won"


async def test_who_never_moved_is_not_judged_for_legality():
    rollout = (await played(TIC_TAC_TOE, "?")).rollout
    assert rollout.rewards == {"Player 0": -1.0, "Player 1": 0.0}
    assert "legality/Player 1" not in rollout.metrics


async def test_mistakes_that_may_be_taken_back_are_counted():
    """Player 0 says nonsense, then 0; player 1 takes 0 twice: the second in a row ends it. 1 of 2 and 0 of 2."""
    arena = TextArenaArena(1, TIC_TAC_TOE, 2, client=scripted(["?", "[0]", "[0]", "[0]"]), mistakes=1)
    rollout = (await arena.run_episode("game", 0)).rollout
    assert [step.role_id for step in rollout.steps] == ["Player 0", "Player 0", "Player 1", "Player 1"]
    assert "invalid move" in rollout.steps[1].prompt[-1]["content"]
    assert record(rollout).legal == {"Player 0": 1, "Player 1": 0}
    assert record(rollout).forfeited_by == "Player 1"
    assert rollout.rewards == {"Player 0": 0.25, "Player 1": -1.0}


async def test_a_game_that_is_cut_off_is_truncated_and_nobody_has_lost():
    rollout = (await played(TIC_TAC_TOE, "[0]", "[3]", max_turns=2)).rollout
    assert rollout.truncated
    assert rollout.rewards == {"Player 0": 0.5, "Player 1": 0.5}
    assert record(rollout).rewards == {"Player 0": 0.0, "Player 1": 0.0}
    assert record(rollout).ending("Player 0") == record(rollout).ending("Player 1") == "truncated"


async def test_a_last_move_that_wins_is_a_win():
    rollout = (await played(TIC_TAC_TOE, "[0]", "[3]", "[1]", "[4]", "[2]", max_turns=5)).rollout
    assert (rollout.truncated, record(rollout).ending("Player 0")) == (False, "won")


async def test_the_games_own_limit_truncates_too():
    """After one turn the limit of 1 is reached, which the game sees in the second: 1 - distance / (20 - 1)."""
    number = number_of(0)
    wrong = [guess for guess in range(1, 21) if guess != number][:2]
    rollout = (
        await played(NUMBER, *(f"[{guess}]" for guess in wrong), players=1, options={"max_turns": 1})
    ).rollout
    assert rollout.truncated
    assert record(rollout).ending("Player 0") == "truncated"
    assert record(rollout).rewards["Player 0"] == pytest.approx(1 - abs(wrong[1] - number) / 19)


async def test_a_last_guess_that_is_right_is_a_win():
    number = number_of(0)
    rollout = (
        await played(NUMBER, f"[{number % 20 + 1}]", f"[{number}]", players=1, options={"max_turns": 1})
    ).rollout
    assert (rollout.truncated, record(rollout).ending("Player 0")) == (False, "won")
    assert rollout.rewards == {"Player 0": 1.5}


async def test_one_players_forfeit_earns_nothing_either():
    """The game itself would pay for how close the guess before was. Legal: 1 of 2."""
    number = number_of(3)
    rollout = (await played(NUMBER, f"[{number % 20 + 1}]", "well", players=1, deal=3)).rollout
    assert record(rollout).rewards["Player 0"] > 0
    assert rollout.rewards == {"Player 0": 0.25}
    assert record(rollout).ending("Player 0") == "forfeited"


async def test_who_moves_is_the_games_to_say():
    """In Kuhn poker player 1 opens; a fold ends the round, and both have nothing more to say."""
    rollout = (await played(KUHN, "[bet]", "[fold]", options={"max_rounds": 1})).rollout
    assert [step.role_id for step in rollout.steps] == ["Player 1", "Player 0"]
    assert record(rollout).rewards == {"Player 0": -1.0, "Player 1": 1.0}


async def test_the_other_hears_the_move_and_not_the_thoughts():
    """With two moves in one text, the one that counts is the one that is passed on, in every game."""
    rollout = (
        await played(KUHN, "I hold a king, so no [check]: [bet]", "[fold]", options={"max_rounds": 1})
    ).rollout
    (heard,) = rollout.steps[1].prompt
    assert "Player 1: [bet]" in heard["content"]
    assert "king" not in heard["content"]
    assert "submitted move: '[check]'" not in heard["content"]


async def test_a_role_has_one_conversation_in_which_everything_stands_once():
    rollout = (await played(TIC_TAC_TOE, "[0]", "[3]", "[1]", "[4]", "[2]", system_prompt="Play.")).rollout
    first, second, third = (step for step in rollout.steps if step.role_id == "Player 0")
    assert first.prompt[0] == {"role": "system", "content": "Play."}
    assert second.prompt[: len(first.prompt) + 1] == [*first.prompt, *first.completion]
    assert third.prompt[: len(second.prompt) + 1] == [*second.prompt, *second.completion]
    said = "\n".join(message["content"] for message in third.prompt if message["role"] == "user")
    assert said.count("You are Player 0 in Tic Tac Toe") == 1
    assert said.count("Player 1: [3]") == said.count("Player 1: [4]") == 1
    assert "Player 0: [0]" not in said  # its own words, which it has said


def global_states() -> tuple[object, str]:
    return random.getstate(), repr(np.random.get_state())


async def test_nobody_elses_chance_is_touched():
    """Kuhn poker shuffles in the middle of a game as well, and its reset reseeds."""
    random.seed(123)
    np.random.seed(123)
    before = global_states()
    await played(KUHN, *["[check]"] * 6, options={"max_rounds": 3})
    assert global_states() == before


def test_a_chance_of_ones_own_goes_on_where_it_was_and_leaves_no_trace():
    chance, before, drawn = Chance(1), global_states(), []
    for _ in range(2):
        with chance.in_place():
            drawn.append((random.random(), np.random.random()))
        assert global_states() == before
    python, numpy = random.Random(1), np.random.RandomState(1)
    assert drawn == [(python.random(), numpy.random()) for _ in range(2)]


def test_a_game_that_raises_leaves_no_trace_either():
    before = global_states()
    with pytest.raises(ConfigError):
        Game(NUMBER, 2, seed=1)
    assert global_states() == before


async def test_games_that_are_played_at_once_deal_as_they_would_alone():
    def deals(rollout: Rollout) -> list[str]:
        words = " ".join(step.prompt_text for step in rollout.steps).split("Your card is: ")
        return [part[:3] for part in words[1:]]

    async def play(seed: int) -> list[str]:
        client = MockInferenceClient(lambda messages: "[check]")
        arena = TextArenaArena(1, KUHN, 2, client=client, options={"max_rounds": 3})
        return deals((await arena.run_episode("game", seed)).rollout)

    alone = [await play(seed) for seed in range(4)]
    assert alone == await asyncio.gather(*(play(seed) for seed in range(4)))
    assert len({str(deal) for deal in alone}) > 1


async def test_without_a_deal_the_request_decides():
    async def play(seed: int) -> str:
        client = MockInferenceClient(lambda messages: "?")
        arena = TextArenaArena(2, KUHN, 2, client=client)
        arena.seed = seed
        return str([(await arena.run_episode("game")).rollout.steps[0].prompt_text for _ in range(8)])

    assert await play(0) == await play(0)
    assert await play(0) != await play(1)


def test_players_of_two_are_compared_with_their_past_and_those_of_one_with_their_group():
    two = TextArenaArena(4, TIC_TAC_TOE, 2)
    assert isinstance(two.credit_assigner, RAECredit)
    assert [request.group for request in two.next_batch()] == [None] * 4
    one = TextArenaArena(6, NUMBER, 1, group_size=4)
    assert isinstance(one.credit_assigner, GRPOCredit)
    batch = one.next_batch()
    assert [request.group for request in batch[:4]] == [batch[0].group] * 4
    assert [request.artifact for request in batch[:4]] == [batch[0].artifact] * 4
    assert len(batch) == 6
    assert batch[4].group == batch[5].group != batch[0].group


async def test_a_players_baseline_is_its_own_past():
    """Player 0 wins twice, 1.5 and -0.5 each time: against a baseline of 0 at first, then against just that."""
    game = ("[0]", "[3]", "[1]", "[4]", "[2]")
    arena = TextArenaArena(1, TIC_TAC_TOE, 2, client=scripted(game * 2))
    first, second = [(await arena.step()).results[0].rollout for _ in range(2)]
    assert first.advantages == pytest.approx({"Player 0": 1.5, "Player 1": -0.5})
    assert second.advantages == pytest.approx({"Player 0": 0.0, "Player 1": 0.0})


def test_an_arena_travels_though_a_game_does_not():
    """Games are begun where they are played."""
    arena = cloudpickle.loads(cloudpickle.dumps(TextArenaArena(4, KUHN, 2, options={"max_rounds": 1})))
    arena.bind(LocalRuntime(arena, scripted(["[bet]", "[call]"])))
    result = asyncio.run(arena.run_episode("game", 0))
    assert sum(record(result.rollout).rewards.values()) == 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: TextArenaArena(1, "TicTacTo-v0", 2),
            "TextArena has no game 'TicTacTo-v0'; did you mean TicTacToe-v0?",
        ),
        (lambda: TextArenaArena(1, NUMBER, 2), "GuessTheNumber-v0 can't be played by 2: "),
        (lambda: TextArenaArena(1, TIC_TAC_TOE, 3), "TicTacToe-v0 was given 3 players; games of one and two"),
        (lambda: TextArenaArena(1, NUMBER, 1, options={"maximum": 3}), "GuessTheNumber-v0 can't be made"),
    ],
)
def test_what_cannot_be_played_is_known_at_once(make: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        make()
