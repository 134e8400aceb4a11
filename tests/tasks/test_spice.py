"""Challenger and Reasoners: what is a valid question, and every reward by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.tasks.spice import CORPUS, SpiceArena, Task, challenge_reward, passages
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Message

PASSAGE = "A spider has eight legs. An ant has six."
ASKED = "Q: How many legs does a spider have? A: eight"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (ASKED, Task("How many legs does a spider have?", "eight")),
        (f" {ASKED}.\n", Task("How many legs does a spider have?", "eight")),
        ("Q: Who?\nA: New York", Task("Who?", "New York")),
        ("How many legs does a spider have? eight", None),
        ("Q: How many legs does a spider have?", None),
        ("Q: How many legs A: eight", None),  # asks nothing
        (f"{ASKED}\nQ: And an ant? A: six", None),  # two of them
        ("Q: How many? A: " + "eight" * 9, None),
        ("", None),
    ],
)
def test_a_question_is_read_with_its_answer(text: str, task: Task | None):
    assert Task.read(text) == task


@pytest.mark.parametrize(
    ("question", "answer", "grounded"),
    [
        ("How many legs does a spider have?", "eight", True),
        ("How many legs does a spider have?", "Eight", True),
        ("How many legs does a spider have?", "8", False),  # not in the passage's words
        ("How many legs does a dog have?", "four", False),
        ("What has eight legs?", "eight", False),  # gives itself away
        ("What bites?", "spid", False),  # no word of it
        ("What?", "A spider has eight legs. An ant has six.", True),
    ],
)
def test_an_answer_stands_in_the_passage_and_not_in_the_question(question: str, answer: str, grounded: bool):
    assert Task(question, answer).is_grounded(PASSAGE) == grounded


@pytest.mark.parametrize(
    ("outcomes", "reward"),
    [
        ([1, 0, 1, 0], 1.0),  # variance 0.25
        ([1, 0, 0, 0], math.exp(-(0.0625**2) / 0.02)),  # variance 3/16: 0.823
        ([1, 1, 1, 0], math.exp(-(0.0625**2) / 0.02)),
        ([0, 0, 0, 0], math.exp(-(0.25**2) / 0.02)),  # 0.044
        ([1, 1, 1, 1], math.exp(-(0.25**2) / 0.02)),
    ],
)
def test_a_challenger_earns_most_where_half_succeed(outcomes: list[float], reward: float):
    assert challenge_reward(outcomes) == pytest.approx(reward)


def scripted_arena(asked: str, *answers: str) -> SpiceArena:
    """One whose Challenger says ``asked`` and whose Reasoners say ``answers`` in turn."""
    says = iter(answers)

    def reply(messages: Sequence[Message]) -> str:
        return asked if messages[-1]["content"].startswith("Text: ") else next(says)

    return SpiceArena(4, n_reasoners=4, client=MockInferenceClient(reply))


async def test_reasoners_answer_without_the_passage():
    """Two of four are right, one of them with words that nobody asked for."""
    arena = scripted_arena(ASKED, "Eight.", "six", "8", "it is eight")
    result = await arena.run_episode("challenge", PASSAGE)
    assert [child.rewards["Reasoner"] for child in result.children] == [1, 0, 0, 0.5]
    assert result.rollout.extras["outcomes"] == [1, 0, 0, 1]
    assert result.rewards == {"Challenger": 1.0}
    assert result.rollout.metrics["invalid/Challenger"] == 0
    for child in result.children:
        assert "ant has six" not in child.rollout.steps[0].prompt_text
        assert child.rollout.steps[0].prompt[-1]["content"] == "How many legs does a spider have?"


@pytest.mark.parametrize("said", ["", "What is it?", ASKED.replace("eight", "four")])
async def test_nobody_answers_what_is_not_valid(said: str):
    result = await scripted_arena(said).run_episode("challenge", PASSAGE)
    assert (result.children, result.rewards, result.rollout.error) == ([], {"Challenger": -0.1}, None)
    assert result.rollout.metrics["invalid/Challenger"] == 1


async def test_a_reasoner_that_failed_did_not_succeed():
    def reply(messages: Sequence[Message]) -> str:
        if messages[-1]["content"].startswith("Text: "):
            return ASKED
        if next(calls) < 2:
            raise RuntimeError("the line is dead")
        return "eight"

    calls = iter(range(4))
    result = await SpiceArena(4, n_reasoners=4, client=MockInferenceClient(reply)).run_episode(
        "challenge", PASSAGE
    )
    assert result.rollout.extras["outcomes"] == [0, 0, 1, 1]
    assert result.rewards == {"Challenger": 1.0}


async def test_challengers_of_one_passage_are_compared():
    """Rewards 1 (half succeed) and -0.1: mean 0.45, advantages ±0.55."""
    asked = iter([ASKED, "hm"])
    answers = iter(["eight", "six"] * 2)

    def reply(messages: Sequence[Message]) -> str:
        return next(asked) if messages[-1]["content"].startswith("Text: ") else next(answers)

    arena = SpiceArena(2, 2, n_reasoners=4, client=MockInferenceClient(reply))
    arena.get_batch = lambda: [EpisodeRequest("challenge", PASSAGE, group="0")] * 2  # type: ignore[method-assign]
    step = await arena.step()
    assert [r.rollout.advantages["Challenger"] for r in step.results] == pytest.approx([0.55, -0.55])
    assert [c.rollout.advantages["Reasoner"] for c in step.results[0].children] == [0.5, -0.5, 0.5, -0.5]


def test_a_corpus_is_read_by_paragraphs():
    assert passages("One\nline.\n\n \nTwo.\n") == ["One line.", "Two."]
    assert len(passages(CORPUS)) == 10
    with pytest.raises(ConfigError, match="the corpus is empty"):
        passages(" \n\n")


def test_questions_from_a_passage_are_a_group_and_passages_come_from_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = SpiceArena(16, 4)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, r.artifact) for r in first[a : a + 4]}) for a in range(0, 16, 4)] == [1] * 4
    assert len({request.group for request in first}) == 4
