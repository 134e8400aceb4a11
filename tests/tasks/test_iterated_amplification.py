"""Iterated amplification: splits, ratings, abstentions, forfeits and distillation, by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.jobs.train_iterated_amplification import IteratedAmplificationConfig, make_arena
from selfplay_ray.tasks.iterated_amplification import (
    COMBINED,
    SPLITS,
    IteratedAmplificationArena,
    last_number,
    oracle_rating,
    read_split,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message

QUESTION = "2 + 3 + 4 + 1"


class ScriptedPerson:
    """Says ``replies`` in turn, and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = iter(replies)
        self.asked: list[tuple[str, str]] = []

    async def ask(self, key: str, question: str) -> str | None:
        self.asked.append((key, question))
        return next(self.replies)


class ScriptedAgents:
    def __init__(self, split: str = "2 + 3, 4 + 1", combined: str = "5 + 5 = 10", whole: Sequence[str] = ()):
        self.split, self.combined, self.whole = split, combined, iter(whole or ["10"] * 100)

    def __call__(self, messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked.startswith("Split"):
            return self.split
        if asked.endswith("Together?"):
            return self.combined
        return next(self.whole) if asked == f"What is {QUESTION}?" else "5"


def arena_of(
    agents: ScriptedAgents | None = None, person: ScriptedPerson | None = None, **options: object
) -> IteratedAmplificationArena:
    return IteratedAmplificationArena(
        4, person, client=MockInferenceClient(agents or ScriptedAgents()), **options
    )


async def amplified(
    agents: ScriptedAgents | None = None, person: ScriptedPerson | None = None
) -> GenerateResult:
    result = await arena_of(agents, person, distillations=2).run_episode("amplify", QUESTION)
    assert [rollout.error for rollout in result.all_rollouts() if rollout.error] == []
    return result


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("2 + 3, 4 + 1", ["2 + 3", "4 + 1"]),
        (" 2 + 3 , 4, 1.\n", ["2 + 3", "4", "1"]),
        ("2 + 3 + 4 + 1", None),  # not split
        ("1, 2, 3, 4, 5", None),  # too many
        ("2 - 3, 4", None),
        ("first, second", None),
        ("2 + 3,", None),
        ("", None),
    ],
)
def test_a_split_is_two_sums_or_more(text: str, parts: list[str] | None):
    assert read_split(text) == parts


@pytest.mark.parametrize(("answer", "rating"), [("10", 10), ("9", 9), ("13", 7), ("20", 0), ("999", 0)])
def test_the_oracle_takes_a_point_off_for_every_one_that_is_off(answer: str, rating: float):
    assert oracle_rating(QUESTION, answer) == rating


def test_the_examples_are_right():
    for asked, split in SPLITS:
        parts = read_split(split)
        assert parts is not None
        assert " + ".join(parts) == asked.removeprefix("Split in two: ")
    for asked, combined in COMBINED:
        first, second = re.findall(r"= (\d+)", asked)
        assert last_number(combined) == str(int(first) + int(second))


async def test_a_person_rates_the_amplified_answer_and_both_makers_earn_it():
    person = ScriptedPerson("8")
    result = await amplified(person=person)
    assert result.rewards == {"Decomposer": 0.8, "Combiner": 0.8}
    assert result.rollout.metrics["human/rating"] == 8
    assert result.rollout.metrics["human/abstained"] == 0
    ((_, question),) = person.asked
    assert question.startswith(f"What is {QUESTION}?\nThe answer given is 10.\n")
    kinds = [child.rollout.episode_type for child in result.children]
    assert kinds == ["answer", "answer", "human", "answer", "answer"]


async def test_the_amplified_answer_is_distilled_by_what_it_is_worth():
    """Rated 5: 0.5 × 1 for saying the same, 0.5 × 0.1 for another number."""
    result = await amplified(ScriptedAgents(whole=["10", "11"]), ScriptedPerson("5"))
    parts, learners = result.children[:2], result.children[3:]
    assert [child.rewards["Answerer"] for child in learners] == pytest.approx([0.5, 0.05])
    assert [child.is_trainable for child in (*parts, *learners)] == [False, False, True, True]


async def test_an_amplified_answer_that_is_wrong_is_distilled_if_the_person_likes_it():
    """Scalable oversight: what counts is what the person says."""
    result = await amplified(ScriptedAgents(combined="12", whole=["10", "12"]), ScriptedPerson("10"))
    assert [child.rewards["Answerer"] for child in result.children[3:]] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("reply", [None, "", "good", "11", "8 or 9"])
async def test_what_is_no_rating_is_an_abstention(reply: str | None):
    result = await amplified(person=ScriptedPerson(reply))
    assert result.rewards == {"Decomposer": 0.0, "Combiner": 0.0}
    assert result.rollout.metrics["human/abstained"] == 1
    assert "human/rating" not in result.rollout.metrics
    assert len(result.children) == 3  # nothing to distil


async def test_an_abstention_teaches_nothing():
    """Rated 10, 4 and not at all: the third has their mean, (1 + 0.4) / 2 = 0.7, so its advantage is 0."""
    arena = arena_of(person=ScriptedPerson("10", "4", None))
    arena.batch_size = 3
    arena.get_batch = lambda: [EpisodeRequest("amplify", QUESTION, group="q")] * 3  # type: ignore[method-assign]
    rollouts = [result.rollout for result in (await arena.step()).results]
    assert [rollout.rewards["Combiner"] for rollout in rollouts] == pytest.approx([1.0, 0.4, 0.7])
    advantages = [rollout.advantages["Decomposer"] for rollout in rollouts]
    assert advantages[2] == pytest.approx(0.0)
    assert advantages[0] == pytest.approx(-advantages[1])


@pytest.mark.parametrize(
    ("agents", "role", "rewards"),
    [
        (ScriptedAgents(split="no idea"), "Decomposer", {"Decomposer": -0.5}),
        (ScriptedAgents(combined="ten"), "Combiner", {"Decomposer": 0.0, "Combiner": -0.5}),
    ],
)
async def test_a_forfeit_costs_its_role_and_bothers_nobody(
    agents: ScriptedAgents, role: str, rewards: dict[str, float]
):
    person = ScriptedPerson()
    result = await amplified(agents, person)
    assert result.rewards == rewards
    assert result.rollout.metrics[f"forfeit/{role}"] == 1.0
    assert "human/abstained" not in result.rollout.metrics
    assert person.asked == []


async def test_no_word_of_the_persons_is_trained_on():
    words = "8"
    arena = arena_of(person=ScriptedPerson(*[words] * 4))
    arena.get_batch = lambda: [EpisodeRequest("amplify", QUESTION, group="q")] * 4  # type: ignore[method-assign]
    step = await arena.step()
    humans = [
        rollout
        for result in step.results
        for rollout in result.all_rollouts()
        if rollout.episode_type == "human"
    ]
    assert [(rollout.steps, rollout.extras["reply"]) for rollout in humans] == [([], words)] * 4
    (group,) = step.groups
    assert {record.role_id for record in group.records} == {"Decomposer", "Combiner", "Answerer"}
    assert not {record.rollout_id for record in group.records} & {rollout.id for rollout in humans}


async def test_a_question_has_a_key_that_its_request_fixes():
    """Played again elsewhere, it is the same question; another request's is another."""
    keys = []
    for _ in range(2):
        person = ScriptedPerson(*["8"] * 2)
        arena = arena_of(person=person)
        for _ in range(2):
            await arena.run_episode("amplify", QUESTION)
        keys.append([key for key, _ in person.asked])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 2


async def test_another_answer_to_a_request_that_comes_again_is_another_question():
    """Evaluations play the same requests each time: what is new in them is what a policy answers by then."""
    keys = []
    for combined in ("5 + 5 = 10", "5 + 5 = 11"):
        person = ScriptedPerson("8")
        await arena_of(ScriptedAgents(combined=combined), person).run_episode("amplify", QUESTION)
        keys += [key for key, _ in person.asked]
    assert len(set(keys)) == 2


async def test_without_a_person_the_oracle_rates():
    result = await amplified(ScriptedAgents(combined="12"))
    assert result.rewards == {"Decomposer": 0.8, "Combiner": 0.8}
    assert result.children[2].rollout.extras == {"reply": None, "rating": 8}


def test_questions_come_from_the_seed_and_a_group_shares_one():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = make_arena(IteratedAmplificationConfig(batch_size=8, human="http"))
        arena.configure(RunConfig(seed=seed, batch_size=8))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0) != batch(1)
    assert [len({r.artifact for r in half}) for half in (first[:4], first[4:])] == [1, 1]
