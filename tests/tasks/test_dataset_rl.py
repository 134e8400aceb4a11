"""A data set's questions: who is asked what, and what a reply is worth."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from selfplay_ray.answers import same_number
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.evaluation import evaluate
from selfplay_ray.problems import Problem, problems_from
from selfplay_ray.tasks.dataset_rl import ByAnswer, DatasetRLArena, digit_sums
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Message

SUMS = problems_from(digit_sums())


def scripted_arena(*replies: str, **options: object) -> DatasetRLArena:
    says = iter(replies)
    client = MockInferenceClient(lambda messages: next(says))
    return DatasetRLArena(8, SUMS, ByAnswer(same_number), client=client, group_size=4, **options)


def test_the_data_set_that_needs_no_file_is_right():
    assert len(SUMS) == 100
    assert SUMS[37] == {"prompt": "What is 3 + 7?", "answer": "10", "row": 37}
    assert all(eval(p["prompt"][8:-1]) == int(p["answer"]) for p in SUMS)


async def test_replies_to_one_question_are_compared():
    """Rewards 1, 0, 0, 1: mean 0.5, deviation 0.5, advantages ±0.5 / 0.5001."""
    arena = scripted_arena("10", "11", "", "It is 10.")
    arena.get_batch = lambda: [EpisodeRequest("answer", SUMS[37], group="g")] * 4  # type: ignore[method-assign]
    arena.batch_size = 4
    step = await arena.step()
    assert [result.rewards["Answerer"] for result in step.results] == [1, 0, 0, 1]
    advantages = [result.rollout.advantages["Answerer"] for result in step.results]
    assert advantages == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, -0.5 / 0.5001, 0.5 / 0.5001])


async def test_a_score_may_take_its_time():
    async def slow(reply: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return float(reply == problem["answer"]) / 4

    arena = DatasetRLArena(8, SUMS, slow, client=MockInferenceClient(lambda messages: "10"))
    assert (await arena.run_episode("answer", SUMS[37])).rewards == {"Answerer": 0.25}


async def test_a_score_that_raises_is_no_zero():
    def broken(reply: str, problem: Problem) -> float:
        raise KeyError("no such column")

    arena = DatasetRLArena(8, SUMS, broken, client=MockInferenceClient(lambda messages: "10"))
    result = await arena.run_episode("answer", SUMS[37])
    assert result.rewards == {}
    assert "no such column" in (result.rollout.error or "")


async def test_examples_are_shown_and_neither_trained_on_nor_evaluated():
    asked: list[Sequence[Message]] = []

    def reply(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "10"

    arena = DatasetRLArena(
        8, SUMS, ByAnswer(same_number), shots=2, system_prompt="Be brief.", client=MockInferenceClient(reply)
    )
    await arena.run_episode("answer", SUMS[37])
    system, *shown, question = asked[0]
    assert system == {"role": "system", "content": "Be brief."}
    assert question["content"] == "What is 3 + 7?"
    assert [message["role"] for message in shown] == ["user", "assistant"] * 2
    assert all(eval(shown[i]["content"][8:-1]) == int(shown[i + 1]["content"]) for i in (0, 2))
    used = {p["prompt"] for p in (*arena.problems, *arena.held_out)}
    assert len(used) == 98
    assert not used & {message["content"] for message in shown}


def test_every_question_gets_its_turn_and_a_group():
    """90 questions, 2 in each batch of 8: after 45 batches all had one turn."""
    arena = scripted_arena()
    arena.configure(RunConfig(batch_size=8))
    batches = [arena.next_batch() for _ in range(45)]
    assert all(len({r.group for r in batch}) == 2 for batch in batches)
    assert all(batch[i].artifact == batch[i + 3].artifact for batch in batches for i in (0, 4))
    asked = [batch[i].artifact["row"] for batch in batches for i in (0, 4)]
    assert sorted(asked) == sorted(p["row"] for p in arena.problems)


def test_a_resumed_run_goes_on_where_it_stopped():
    first, second = scripted_arena(), scripted_arena()
    for arena in (first, second):
        arena.configure(RunConfig(batch_size=8, seed=3))
    batches = [first.next_batch() for _ in range(4)]
    second.load_state_dict({**second.state_dict(), "batches": 2})
    assert [second.next_batch() for _ in range(2)] == batches[2:]


async def test_an_evaluation_asks_what_was_held_out():
    arena = scripted_arena(*["7"] * 10)
    evaluation = await evaluate(arena, 64)
    asked = {tree.rollout.artifact["row"] for tree in evaluation.results}
    assert asked == {p["row"] for p in arena.held_out}
    assert len(asked) == len(evaluation.results) == 10
    assert not asked & {p["row"] for p in arena.problems}
    right = sum(problem["answer"] == "7" for problem in arena.held_out)
    assert evaluation.rewards["Answerer"].mean == pytest.approx(right / 10)


def test_without_a_held_out_part_an_evaluation_asks_what_is_trained_on():
    arena = scripted_arena(held_out=0, shots=2)
    assert arena.held_out == arena.problems
    assert len(arena.get_eval_batch(5)) == 5


def test_questions_that_are_all_shown_are_refused():
    with pytest.raises(ConfigError, match="of 90 questions 90 are shown; that leaves none to train on"):
        scripted_arena(shots=90)
