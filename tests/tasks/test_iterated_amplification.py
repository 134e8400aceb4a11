"""Iterated amplification: splits, ratings, abstentions, forfeits and distillation, by hand."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.credit import GRPOCredit
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
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message, RoleStats, RolloutGroup

QUESTION = "2 + 3 + 4 + 1"


class ScriptedPerson:
    """Says ``replies`` in turn, and keeps what it was asked."""

    def __init__(self, *replies: str | None) -> None:
        self.replies = iter(replies)
        self.asked: list[tuple[str, str]] = []

    async def ask(self, key: str, question: str) -> str | None:
        self.asked.append((key, question))
        return next(self.replies)


SPLIT, COMBINED_TO = "2 + 3, 4 + 1", "5 + 5 = 10"


class ScriptedAgents:
    """Each says its part in turn, or one that it has always."""

    def __init__(
        self,
        split: str | Sequence[str] = SPLIT,
        combined: str | Sequence[str] = COMBINED_TO,
        whole: Sequence[str] = (),
    ):
        self.split, self.combined = (
            itertools.repeat(said) if isinstance(said, str) else iter(said) for said in (split, combined)
        )
        self.whole = iter(whole or ["10"] * 100)

    def __call__(self, messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked.startswith("Split"):
            return next(self.split)
        if asked.endswith("Together?"):
            return next(self.combined)
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
    assert (result.rewards, result.rollout.unscored) == ({}, ["Decomposer", "Combiner"])
    assert result.rollout.metrics["human/abstained"] == 1
    assert "human/rating" not in result.rollout.metrics
    assert len(result.children) == 3  # nothing to distil


async def group_of(agents: ScriptedAgents, *replies: str | None, size: int) -> RolloutGroup:
    """As many amplified answers to one question, rated by ``replies``."""
    arena = arena_of(agents, ScriptedPerson(*replies), distillations=0, credit_assigner=GRPOCredit())
    arena.batch_size = size
    arena.get_batch = lambda: [EpisodeRequest("amplify", QUESTION, group="q")] * size  # type: ignore[method-assign]
    (group,) = (await arena.step()).groups
    return group


def credited(group: RolloutGroup) -> list[tuple[str, str, float]]:
    """Which root's role has been given what advantage."""
    return [(r.rollout_id[-1], r.role_id[0], round(r.advantage, 6)) for r in group.records]


async def test_an_abstention_teaches_nothing():
    """Rated 10, 4 and not at all: the mean of the two is (1 + 0.4) / 2 = 0.7."""
    group = await group_of(ScriptedAgents(), "10", "4", None, size=3)
    assert credited(group) == [("0", "D", 0.3), ("0", "C", 0.3), ("1", "D", -0.3), ("1", "C", -0.3)]
    assert group.metrics["credit/unscored"] == 2


async def test_nobody_who_was_not_rated_gains_by_a_forfeit():
    """A Decomposer that forfeits beside one whose answer wasn't rated: alone in its group, it has 0, and the other
    isn't trained on."""
    group = await group_of(ScriptedAgents(split=["no idea", SPLIT]), None, size=2)
    assert credited(group) == [("0", "D", 0.0)]
    assert group.rewards["Decomposer"] == RoleStats(1, -0.5, 0.0)


async def test_a_combiner_that_forfeits_costs_no_decomposer():
    """Rated 8, forfeited by the Combiner, rated 4. Combiners: mean(0.8, -0.5, 0.4) = 0.7 / 3 = 0.233333. Decomposers:
    mean(0.8, 0.4) = 0.6, and the second's split may have been as good as any."""
    group = await group_of(ScriptedAgents(combined=["10", "ten", "12"]), "8", "4", size=3)
    assert credited(group) == [
        ("0", "D", 0.2),
        ("0", "C", 0.566667),
        ("1", "C", -0.733333),
        ("2", "D", -0.2),
        ("2", "C", 0.166667),
    ]


async def test_a_decomposer_that_forfeits_costs_no_combiner():
    """Decomposers: -0.5 and 0.8, mean 0.15. The Combiner of the second is the only one there is."""
    group = await group_of(ScriptedAgents(split=["no idea", SPLIT]), "8", size=2)
    assert credited(group) == [("0", "D", -0.65), ("1", "D", 0.65), ("1", "C", 0.0)]


async def test_the_answer_to_a_part_is_no_answer_of_worth_zero():
    """An Answerer's mean reward in an evaluation is that of those who had something to say the same as."""
    result = await amplified(person=ScriptedPerson("8"))
    answers = [child.rollout for child in result.children if child.rollout.episode_type == "answer"]
    assert [answer.rewards for answer in answers] == [{}, {}, {"Answerer": 0.8}, {"Answerer": 0.8}]
    assert [answer.unscored for answer in answers] == [["Answerer"]] * 2 + [[]] * 2


@pytest.mark.parametrize(
    ("agents", "role", "rewards"),
    [
        (ScriptedAgents(split="no idea"), "Decomposer", {"Decomposer": -0.5}),
        (ScriptedAgents(combined="ten"), "Combiner", {"Combiner": -0.5}),
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
