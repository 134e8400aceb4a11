"""Three roles with an objective each: every reward by hand, and what each weighs in a step."""

from __future__ import annotations

from typing import Any

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.jobs.train_multi_objective import MultiObjectiveConfig
from selfplay_ray.tasks.multi_objective import (
    CRITIQUES,
    SUMMARIES,
    WRITTEN,
    MultiObjectiveArena,
    Problem,
    last_number,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Rollout


async def played(*scripted: str) -> Rollout:
    """What the Writer, the Summarizer and the Critic say of 3 + 2."""
    said = iter(scripted)
    arena = MultiObjectiveArena(8, client=MockInferenceClient(lambda messages: next(said)))
    rollout = (await arena.run_episode("write", (3, 2))).rollout
    assert rollout.error is None, rollout.error
    return rollout


@pytest.mark.parametrize(
    ("text", "reward"),
    [("3 and 2 are 5.", 1.0), ("5", 1.0), ("7 are left", 0.2), ("5 of 7", 0.2)],
)
async def test_the_writer_is_paid_for_the_right_number(text: str, reward: float):
    assert (await played(text, "5", "right")).rewards["Writer"] == reward


@pytest.mark.parametrize(
    ("summary", "reward", "unreadable"),
    [
        ("7", 1.0, 0.0),  # what the Writer said, though it is wrong
        ("It is 7", 0.5 + 0.5 * (1 - 2 / 11), 0.0),  # three words
        ("word " * 11 + "7", 0.5, 0.0),  # twelve
        ("word " * 20 + "7", 0.5, 0.0),
        ("5", 0.0, 0.0),  # right, but not what was said
        ("seven", 0.0, 1.0),
        ("", 0.0, 1.0),
    ],
)
async def test_the_summarizer_is_paid_for_being_faithful_and_brief(
    summary: str, reward: float, unreadable: float
):
    rollout = await played("I think it is 7.", summary, "right")
    assert rollout.rewards["Summarizer"] == pytest.approx(reward)
    assert rollout.metrics["unreadable/Summarizer"] == unreadable


@pytest.mark.parametrize(
    ("written", "verdict", "reward", "unreadable"),
    [
        ("It is 5", "right", 1.0, 0.0),
        ("It is 5", "Wrong.", 0.0, 0.0),
        ("It is 7", "wrong", 1.0, 0.0),
        ("It is 7", "Right!", 0.0, 0.0),
        ("It is 5", "right or wrong", 0.0, 1.0),
        ("It is 5", "", 0.0, 1.0),
    ],
)
async def test_the_critic_is_paid_for_being_right_about_the_writer(
    written: str, verdict: str, reward: float, unreadable: float
):
    rollout = await played(written, "5", verdict)
    assert rollout.rewards["Critic"] == reward
    assert rollout.metrics["unreadable/Critic"] == unreadable


@pytest.mark.parametrize("text", ["five", "", "\n"])
async def test_a_writer_without_a_number_forfeits_and_the_others_are_not_asked(text: str):
    rollout = await played(text)
    assert rollout.rewards == {"Writer": 0.0}
    assert [step.role_id for step in rollout.steps] == ["Writer"]
    assert rollout.metrics["unreadable/Writer"] == 1.0


async def test_the_critic_sees_neither_the_answer_nor_the_summary():
    rollout = await played("It is\n7", "seven!", "right")
    assert rollout.steps[2].prompt[-1]["content"] == (
        "Ann has 3 apples and gets 2. How many has she?\nSomebody says: It is 7\nRight or wrong?"
    )


def test_the_examples_are_right():
    problems = (Problem(5, 2), Problem(1, 6), Problem(6, 3))
    assert [last_number(text) for _, text in WRITTEN] == [problem.answer for problem in problems]
    assert all(last_number(text) == int(summary) for text, summary in SUMMARIES)
    assert [verdict for _, verdict in CRITIQUES] == ["right", "wrong"]
    assert last_number(CRITIQUES[1][0].partition("says:")[2]) != Problem(1, 6).answer


async def test_all_objectives_are_credited_in_one_step_each_with_its_own():
    """Two Writers: 1 and 0.2, mean 0.6, deviation 0.4. Their Summarizers: 1 and 0. Their Critics: 0 and 0."""
    said = iter(["5", "5", "wrong", "7", "9", "right"])
    arena = MultiObjectiveArena(2, group_size=2, client=MockInferenceClient(lambda messages: next(said)))
    arena.get_batch = lambda: [EpisodeRequest("write", (3, 2), group="p")] * 2  # type: ignore[method-assign]
    step = await arena.step()
    advantages = [result.rollout.advantages for result in step.results]
    assert advantages[0] == pytest.approx({"Writer": 0.4 / 0.4001, "Summarizer": 0.5 / 0.5001, "Critic": 0})
    assert advantages[1] == pytest.approx({"Writer": -0.4 / 0.4001, "Summarizer": -0.5 / 0.5001, "Critic": 0})
    (group,) = step.groups
    assert {record.role_id for record in group.records} == {"Writer", "Summarizer", "Critic"}


def test_objectives_have_weights_of_their_own():
    assert MultiObjectiveConfig().role_weights == {"Writer": 1.0, "Summarizer": 0.5, "Critic": 0.5}


def test_problems_come_from_the_seed_and_a_group_shares_one():
    def batch(seed: int) -> list[Any]:
        arena = MultiObjectiveArena(16, group_size=8)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0) != batch(1)
    assert [request.artifact for request in first[:8]] == [first[0].artifact] * 8
    assert len({request.group for request in first}) == 2
