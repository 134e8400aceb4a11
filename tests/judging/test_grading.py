"""Grading one text, by scripted judges."""

from __future__ import annotations

import itertools

import pytest
from scripted_judge import arena_with

from selfplay_ray.judging import Example, GradingJudge, YesNoJudge


async def test_grades_go_from_0_to_1_and_votes_are_averaged() -> None:
    replies = itertools.cycle(["7", "Score: 10/10", "quite good"])
    arena, client = arena_with(lambda _: next(replies))
    grade = await GradingJudge("How clear is it?", votes=3).grade(arena, "A text.", about="A task.")
    assert grade.votes == (0.7, 1.0, None)
    assert grade.score == pytest.approx(0.85)
    assert grade.metrics() == {"judge/abstained": pytest.approx(1 / 3), "judge/no_verdict": 0}
    assert client.calls[0].temperature == 0.7


async def test_unread_grades_are_none() -> None:
    arena, _ = arena_with(lambda _: "11")
    assert (await GradingJudge("How clear is it?").grade(arena, "A text.")).score is None


async def test_yes_is_1_and_no_is_0() -> None:
    replies = itertools.cycle(["yes", "Verdict: no", "No.", "maybe"])
    arena, _ = arena_with(lambda _: next(replies))
    verdict = await YesNoJudge("Is it so?", votes=4).check(arena, "A text.")
    assert verdict.votes == (1, 0, 0, None)
    assert verdict.score == pytest.approx(1 / 3)


async def test_with_reasoning_it_may_think_first() -> None:
    arena, client = arena_with(lambda _: "It names a source.\nVerdict: yes")
    assert (await YesNoJudge("Is it so?", reasoning=True).check(arena, "A text.")).score == 1
    assert client.calls[0].max_tokens == 512
    assert "Think it through" in client.calls[0].messages[0]["content"]


async def test_examples_are_earlier_turns() -> None:
    arena, client = arena_with(lambda _: "7")
    judge = GradingJudge("How clear is it?", examples=[Example("A task.", "Mud.", "1")])
    await judge.grade(arena, "A text.", about="Another task.")
    shown, verdict, asked = (message["content"] for message in client.calls[0].messages)
    assert verdict == "1"
    assert shown.startswith("A task.\n")
    assert "\nMud.\nEND" in shown
    assert asked.startswith("Another task.\n")
    check = YesNoJudge("Is it so?", examples=[Example("", "Mud.", "no")], reasoning=True)
    await check.check(arena, "A text.")
    assert len(client.calls[1].messages) == 1
