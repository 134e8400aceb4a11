"""Tournaments between scripted slogans before a scripted judge: every reward by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from selfplay_ray.evaluation import evaluate
from selfplay_ray.jobs.train_tournament import TournamentConfig, make_arena
from selfplay_ray.judging import PairwiseJudge
from selfplay_ray.ratings import Match, bradley_terry
from selfplay_ray.tasks.tournament import FIRST_WINNER, PRODUCTS, WINNERS, TournamentArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message


def better(*ranking: str) -> Callable[[str], str]:
    """A judge to whom who stands earlier in ``ranking`` is better; of others it can't say anything."""

    def judge(question: str) -> str:
        places = {slogan: question.find(f"\n{slogan}\n") for slogan in ranking}
        shown = [slogan for slogan in ranking if places[slogan] >= 0]
        return "?" if len(shown) < 2 else "A" if places[shown[0]] < places[shown[1]] else "B"

    return judge


def scripted(slogans: Sequence[str], judge: Callable[[str], str], batch_size: int = 1) -> TournamentArena:
    """Candidates propose ``slogans``, one after the other."""
    left = iter(slogans)
    scripted_judge = MockInferenceClient(lambda messages: judge(messages[-1]["content"]))
    return TournamentArena(
        batch_size,
        PairwiseJudge("Which is better, A or B?"),
        len(slogans),
        client=MockInferenceClient(lambda messages: next(left)),
        judge=scripted_judge,
    )


def children(tree: GenerateResult, episode_type: str) -> list[GenerateResult]:
    return [child for child in tree.children if child.rollout.episode_type == episode_type]


async def test_every_two_candidates_meet_and_strength_is_the_reward():
    """One beats all, two beats three: by symmetry two's strength is 0, and three's is one's with the other sign."""
    step = await scripted(["two", "one", "three"], better("one", "two", "three")).step()
    (tree,) = step.results
    duels = children(tree, "duel")
    assert [duel.rollout.artifact["candidates"] for duel in duels] == [[0, 1], [0, 2], [1, 2]]
    assert [duel.rollout.extras["score"] for duel in duels] == [-1.0, 1.0, 1.0]
    assert all(duel.rewards == {} for duel in duels)
    rewards = [proposal.rewards["Proposer"] for proposal in children(tree, "proposal")]
    strongest = bradley_terry(3, [Match(0, 1, 0.0), Match(0, 2, 1.0), Match(1, 2, 1.0)])[1]
    assert strongest > 0
    assert rewards == pytest.approx([0.0, math.tanh(strongest / 2), -math.tanh(strongest / 2)], abs=1e-9)


async def test_one_duel_by_hand():
    """The winner's odds against an average candidate are x with x²/(x² + 1) + x/(x + 1) = 1.5 (see test_ratings): the
    reward is P(beats it) - P(loses to it) = (x - 1) / (x + 1)."""
    step = await scripted(["bad", "good"], better("good", "bad")).step()
    lost, won = (proposal.rewards["Proposer"] for proposal in children(step.results[0], "proposal"))
    x = (1 + won) / (1 - won)
    assert x**2 / (x**2 + 1) + x / (x + 1) == pytest.approx(1.5)
    assert lost == pytest.approx(-won)


async def test_candidates_are_compared_with_each_other_and_only_they_are_trained():
    """Rewards r and -r: mean 0, deviation r, advantages ±r / (r + 0.0001)."""
    step = await scripted(["bad", "good"], better("good", "bad")).step()
    (group,) = step.groups
    won = children(step.results[0], "proposal")[1].rewards["Proposer"]
    assert [record.advantage for record in group.records] == pytest.approx(
        [-won / (won + 1e-4), won / (won + 1e-4)]
    )
    assert [record.reward for record in group.records] == pytest.approx([-won, won])
    assert {record.role_id for record in group.records} == {"Proposer"}
    assert group.rewards["Proposer"].count == 2


@pytest.mark.parametrize("judge", [lambda _: "tie", lambda _: "A"])
async def test_draws_reward_nobody(judge: Callable[[str], str]):
    step = await scripted(["one", "two"], judge).step()
    assert [proposal.rewards for proposal in children(step.results[0], "proposal")] == [{"Proposer": 0.0}] * 2


async def test_an_abstention_is_no_draw():
    """Of the three, only one and two can be compared: of three nobody can tell. The others' mean is 0."""
    arena = scripted(["one", "two", "three"], better("one", "two"))
    step = await arena.step()
    (tree,), (group,) = step.results, step.groups
    first, second, third = children(tree, "proposal")
    won, lost = first.rewards["Proposer"], second.rewards["Proposer"]
    assert won > 0 > lost
    assert (third.rewards, third.rollout.unscored) == ({}, ["Proposer"])
    assert [record.advantage for record in group.records] == pytest.approx(
        [won / (won + 1e-4), lost / (won + 1e-4)]
    )
    assert [duel.rollout.metrics["judge/no_verdict"] for duel in children(tree, "duel")] == [0, 1, 1]


async def test_who_says_nothing_forfeits_and_nobody_gains_by_it():
    (tree,) = (await scripted(["", "one", "two"], better("one", "two")).step()).results
    proposals = children(tree, "proposal")
    assert [duel.rollout.artifact["candidates"] for duel in children(tree, "duel")] == [[1, 2]]
    rewards = [proposal.rewards["Proposer"] for proposal in proposals]
    assert rewards[0] == -1.0
    assert rewards[1] == pytest.approx(-rewards[2])
    assert [proposal.rollout.metrics["forfeited/Proposer"] for proposal in proposals] == [1.0, 0.0, 0.0]


async def test_copies_do_not_meet():
    (tree,) = (await scripted(["one", "one"], lambda _: "A").step()).results
    assert children(tree, "duel") == []
    assert [proposal.rewards["Proposer"] for proposal in children(tree, "proposal")] == [0.0, 0.0]


async def test_a_candidate_that_failed_is_left_out():
    def say(messages: Sequence[Message]) -> str:
        slogan = next(left)
        if slogan == "dead":
            raise RuntimeError("the line is dead")
        return slogan

    arena = scripted(["dead", "one", "two"], better("one", "two"))
    left = iter(["dead", "one", "two"])
    arena.runtime.client.response_fn = say  # type: ignore[attr-defined]
    (tree,) = (await arena.step()).results
    assert tree.rollout.error is None
    rewards = [proposal.rewards for proposal in children(tree, "proposal")]
    assert rewards[0] == {}
    assert rewards[1]["Proposer"] > 0 > rewards[2]["Proposer"]


@pytest.mark.parametrize("first", ["", "dead"])
async def test_where_all_others_tie_nobody_has_won(first: str):
    """Neither who said nothing nor who failed, though nobody is stronger."""

    def say(messages: Sequence[Message]) -> str:
        slogan = next(left)
        if slogan == "dead":
            raise RuntimeError("the line is dead")
        return slogan

    arena = scripted([first, "one", "two"], lambda question: "A")
    left = iter([first, "one", "two"])
    arena.runtime.client.response_fn = say  # type: ignore[attr-defined]
    (tree,) = (await arena.step()).results
    assert [duel.rollout.extras["score"] for duel in children(tree, "duel") if not duel.rollout.error] == [
        0.0
    ]
    assert [winner.id for winner in arena.stores[WINNERS]] == [FIRST_WINNER[0]]


async def test_winners_are_examples_to_those_who_come_next():
    arena = scripted(["bad", "good"], better("good", "bad"))
    (tree,) = (await arena.step()).results
    product = tree.rollout.artifact["product"]
    assert tree.rollout.artifact["example"] == list(FIRST_WINNER)
    proposal = children(tree, "proposal")[0].rollout
    assert [message["content"] for message in proposal.steps[0].prompt] == [
        f"Write a slogan for {FIRST_WINNER[0]}.",
        FIRST_WINNER[1],
        f"Write a slogan for {product}.",
    ]
    assert {winner.id: winner.data for winner in arena.stores[WINNERS]} == {
        FIRST_WINNER[0]: FIRST_WINNER[1],
        product: "good",
    }
    others = [arena.contest(other)["example"] for other in PRODUCTS if other != product]
    assert [product, "good"] in others
    assert arena.contest(product)["example"] == list(FIRST_WINNER)  # not one that could be repeated
    later = scripted(["one", "two"], lambda _: "?")
    later.load_state_dict(arena.state_dict())
    assert later.stores[WINNERS].count() == 2


async def test_an_evaluation_keeps_no_winners():
    arena = scripted(["bad", "good"], better("good", "bad"))
    evaluation = await evaluate(arena, 1)
    assert arena.stores[WINNERS].count() == 1
    assert evaluation.rewards["Proposer"].mean == pytest.approx(0, abs=1e-9)


def test_a_batch_is_drawn_by_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        config = TournamentConfig(seed=seed)
        arena = make_arena(config)
        arena.configure(config)
        return arena.next_batch()

    assert batch(0) == batch(0)
    assert batch(0) != batch(1)
