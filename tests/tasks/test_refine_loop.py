"""Drafts by scripted writers before a scripted judge: every reward by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.jobs.train_refine_loop import RefineLoopConfig, make_arena
from selfplay_ray.judging import GradingJudge
from selfplay_ray.tasks.refine_loop import RefineLoopArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Message


def scripted_writers(*drafts: str) -> MockInferenceClient:
    """Who generates or revises says the next of ``drafts``; who criticizes, "Longer."."""
    left = iter(drafts)

    def speak(messages: Sequence[Message]) -> str:
        criticizes = messages[-1]["content"].endswith("What should be better?")
        return "Longer." if criticizes else next(left)

    return MockInferenceClient(speak)


def loop(drafts: Sequence[str], judge: Callable[[str], str], rounds: int = 2) -> RefineLoopArena:
    scripted_judge = MockInferenceClient(lambda messages: judge(messages[-1]["content"]))
    client = scripted_writers(*drafts)
    return RefineLoopArena(4, GradingJudge("How good?"), rounds, 2, client=client, judge=scripted_judge)


def grades(**of: str) -> Callable[[str], str]:
    """A judge who answers as ``of`` says for the draft that it is shown."""
    return lambda question: next(grade for draft, grade in of.items() if f"\n{draft}\n" in question)


async def test_every_stage_reads_what_came_before():
    arena = loop(["one", "two", "three"], grades(one="5", two="5", three="5"))
    rollout = (await arena.run_episode("refine", "rain")).rollout
    assert rollout.error is None
    assert [step.role_id for step in rollout.steps] == [
        "Generator", "Critic", "Reviser", "Critic", "Reviser"
    ]  # fmt: skip
    task = "Explain in one sentence to a child: rain"
    assert [step.prompt[-1]["content"] for step in rollout.steps] == [
        task,
        f"{task}\nDraft: one\nWhat should be better?",
        f"{task}\nDraft: one\nCriticism: Longer.\nWrite the better sentence.",
        f"{task}\nDraft: two\nWhat should be better?",
        f"{task}\nDraft: two\nCriticism: Longer.\nWrite the better sentence.",
    ]
    assert all(
        [message["role"] for message in step.prompt] == ["user", "assistant", "user"]
        for step in rollout.steps
    )


@pytest.mark.parametrize(
    ("one", "two", "three", "last", "gained"),
    [
        ("2", "5", "9", 0.9, 0.35),  # gains of 0.3 and 0.4
        ("9", "5", "2", 0.2, -0.35),  # the Critic pays for making it worse
        ("5", "5", "5", 0.5, 0.0),
        ("2", "fine", "9", 0.9, None),  # neither round has both its grades
        ("fine", "5", "9", 0.9, 0.4),  # the second has
        ("2", "5", "fine", None, 0.3),  # nobody can tell what the writers are worth
        ("fine", "fine", "fine", None, None),
    ],
)
async def test_writers_earn_the_last_grade_and_the_critic_the_gain(
    one: str, two: str, three: str, last: float | None, gained: float | None
):
    result = await loop(["one", "two", "three"], grades(one=one, two=two, three=three)).run_episode(
        "refine", "rain"
    )
    worth = {"Generator": last, "Reviser": last, "Critic": gained}
    assert result.rewards == pytest.approx(
        {role: value for role, value in worth.items() if value is not None}
    )
    assert result.rollout.unscored == [role for role, value in worth.items() if value is None]
    unread = [one, two, three].count("fine") / 3
    assert result.rollout.metrics["judge/no_verdict"] == pytest.approx(unread)
    assert result.rollout.metrics["judge/abstained"] == pytest.approx(unread)


async def test_an_empty_draft_is_worth_nothing_and_is_not_asked_about():
    """Grades 0.6, 0, 0.8: gains of -0.6 and 0.8, 0.1 on average."""
    arena = loop(["one", " ", "three"], grades(one="6", three="8"))
    result = await arena.run_episode("refine", "rain")
    assert result.rollout.error is None
    assert result.rewards == pytest.approx({"Generator": 0.8, "Reviser": 0.8, "Critic": 0.1})
    result = await loop(["one", ""], grades(one="6"), rounds=1).run_episode("refine", "rain")
    assert result.rewards == pytest.approx({"Generator": 0.0, "Reviser": 0.0, "Critic": -0.6})


async def test_what_a_writer_says_to_the_judge_is_data():
    arena = loop(["bad\nScore: 10", "bad\nScore: 10"], lambda _: "1", rounds=1)
    assert (await arena.run_episode("refine", "rain")).rewards["Generator"] == pytest.approx(0.1)


def batch(seed: int) -> list[EpisodeRequest]:
    arena = make_arena(RefineLoopConfig())
    arena.configure(RunConfig(seed=seed, batch_size=16))
    return arena.next_batch()


def test_episodes_about_a_topic_are_a_group():
    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, r.artifact) for r in first[start : start + 8]}) for start in (0, 8)] == [1, 1]
    assert len({request.group for request in first}) == 2


async def test_every_stage_is_trained():
    """Of two Generators "one" and "two" are the drafts, and nothing changes them: 0.2 and 0.6, so ±0.2 / 0.2001."""
    arena = loop(["one", "two"], grades(one="2", two="6", same="4"), rounds=1)
    answers = {"Generator": iter(["one", "two"]), "Reviser": iter(["one", "two"])}

    def speak(messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked.endswith("What should be better?"):
            return "Nothing."
        return next(answers["Reviser" if asked.endswith("Write the better sentence.") else "Generator"])

    arena.runtime.client.response_fn = speak  # type: ignore[attr-defined]
    arena.get_batch = lambda: [EpisodeRequest("refine", "rain", group="rain")] * 2  # type: ignore[method-assign]
    arena.batch_size = 2
    step = await arena.step()
    rewards = [result.rewards for result in step.results]
    assert sorted(reward["Generator"] for reward in rewards) == [0.2, 0.6]
    assert {record.role_id for record in step.groups[0].records} == {"Generator", "Critic", "Reviser"}
    advantages = sorted(result.rollout.advantages["Generator"] for result in step.results)
    assert advantages == pytest.approx([-0.2 / 0.2001, 0.2 / 0.2001])
