"""Multi-agent negotiation: splits, votes, Pareto optimality and everybody's rewards, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.multi_agent_negotiation import (
    MultiAgentNegotiationArena,
    is_pareto_optimal,
    read_split,
    read_vote,
    worth,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Message, Rollout

VALUES = {"A": [6, 3, 1], "B": [1, 6, 3], "C": [3, 1, 6]}
"""Each likes another item best, and all of them are worth 10 to each."""
POSITION = {"values": VALUES, "order": ["A", "B", "C"]}


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("A B C", ["A", "B", "C"]),
        ("I propose A, B, C.", ["A", "B", "C"]),
        ("A A A or rather\nB B B", ["B", "B", "B"]),  # the last one
        ("A B", None),
        ("A B C A", None),  # which three?
        ("A B D", None),  # nobody's name
        ("a b c", None),
        ("ABC", None),
        ("", None),
    ],
)
def test_a_split_has_a_letter_for_every_item(text: str, split: list[str] | None):
    assert read_split(text, "ABC", 3) == split


@pytest.mark.parametrize(
    ("text", "vote"),
    [("YES", True), ("NO.", False), ("YES? No: NO", False), ("yes", None), ("NOT YET", None), ("", None)],
)
def test_a_vote_is_the_last_yes_or_no(text: str, vote: bool | None):
    assert read_vote(text) == vote


@pytest.mark.parametrize(
    ("split", "optimal"),
    [
        ("ABC", True),  # 6, 6, 6: everybody has what it likes best
        ("AAA", True),  # 10, 0, 0: whatever B or C got would be A's loss
        ("BCA", False),  # 1, 1, 1: ABC is better for all
        ("BBC", True),  # 0, 7, 6: A could only get something from who values it, too
        ("CAB", False),  # 3, 3, 3
        ("ABA", True),  # 7, 6, 0: C could only get something from who values it, too
    ],
)
def test_a_split_is_optimal_if_no_other_is_better_for_one_and_worse_for_none(split: str, optimal: bool):
    assert is_pareto_optimal(list(split), VALUES) == optimal


def test_what_nobody_wants_of_its_own_makes_a_split_wasteful():
    values = {"A": [1, 0], "B": [0, 1]}
    verdicts = {split: is_pareto_optimal(list(split), values) for split in ("AB", "BA", "AA", "BB")}
    assert verdicts == {"AB": True, "BA": False, "AA": False, "BB": False}  # (1,1) (0,0) (1,0) (0,1)


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=2, max_size=3), st.data())
def test_a_split_of_the_greatest_sum_is_optimal(rows: list[list[int]], data: st.DataObject):
    values = dict(zip("ABC", rows, strict=False))
    best = [max(values, key=lambda agent: values[agent][item]) for item in range(3)]
    assert is_pareto_optimal(best, values)
    other = data.draw(st.lists(st.sampled_from(list(values)), min_size=3, max_size=3))
    shares = [worth(agent, other, values) for agent in values]
    if all(share < worth(agent, best, values) for agent, share in zip(values, shares, strict=True)):
        assert not is_pareto_optimal(other, values)


async def played(*scripted: str, position: object = POSITION, **options: object) -> Rollout:
    """``scripted``: what the proposer says, then the voters in their order, and so on."""
    said = iter(scripted)
    client = MockInferenceClient(lambda messages: next(said))
    arena = MultiAgentNegotiationArena(4, items=3, client=client, **options)
    rollout = (await arena.run_episode("split", position)).rollout
    assert rollout.error is None, rollout.error
    return rollout


async def test_a_deal_pays_shares_and_for_being_pareto_optimal():
    """ABC: each has 6 of 10, and 0.5 × 1."""
    rollout = await played("A B C", "YES", "YES")
    assert rollout.rewards == pytest.approx({"Agent A": 1.1, "Agent B": 1.1, "Agent C": 1.1})
    assert (rollout.metrics["deal"], rollout.metrics["truncated"]) == (1.0, 0.0)
    assert not rollout.truncated


async def test_a_wasteful_deal_pays_only_shares():
    """BCA: each has 1 of 10, though 6 of 10 were to be had."""
    rollout = await played("B C A", "YES", "YES")
    assert rollout.rewards == pytest.approx({"Agent A": 0.1, "Agent B": 0.1, "Agent C": 0.1})


async def test_with_two_of_three_it_is_a_deal():
    """AAB: A has 9, B 3, C nothing, and no other split is better for one and worse for none."""
    rollout = await played("A A B", "YES", "NO")
    assert rollout.extras["split"] == ["A", "A", "B"]
    assert is_pareto_optimal("AAB", VALUES)
    assert rollout.rewards == pytest.approx({"Agent A": 0.9 + 0.5, "Agent B": 0.3 + 0.5, "Agent C": 0.5})


async def test_of_two_both_must_agree():
    position = {"values": {"A": [1, 3], "B": [3, 1]}, "order": ["A", "B"]}
    said = iter(["A A", "NO", "B A", "YES"])
    client = MockInferenceClient(lambda messages: next(said))
    arena = MultiAgentNegotiationArena(4, agents=2, items=2, client=client)
    rollout = (await arena.run_episode("split", position)).rollout
    assert rollout.extras["split"] == ["B", "A"]
    assert rollout.rewards == pytest.approx({"Agent A": 0.75 + 0.5, "Agent B": 0.75 + 0.5})


async def test_when_all_turns_are_over_it_is_truncated_and_nobody_gets_anything():
    rollout = await played("A A A", "NO", "NO", "B B B", "NO", "NO", "C C C", "NO", "NO")
    assert rollout.truncated
    assert rollout.rewards == {"Agent A": 0.0, "Agent B": 0.0, "Agent C": 0.0}
    assert (rollout.metrics["truncated"], rollout.metrics["forfeited_turns"]) == (1.0, 0.0)
    assert [step.role_id for step in rollout.steps[::3]] == ["Agent A", "Agent B", "Agent C"]


async def test_a_proposal_that_cannot_be_read_forfeits_the_turn_and_costs_its_agent():
    """A: one of its two answers, -0.5 × 1/2, and 0.6 + 0.5 for the deal that B proposed."""
    rollout = await played("me!", "A B C", "YES", "YES")
    assert rollout.rewards == pytest.approx({"Agent A": 1.1 - 0.25, "Agent B": 1.1, "Agent C": 1.1})
    assert rollout.metrics["forfeited_turns"] == 1.0
    assert rollout.metrics["unreadable/Agent A"] == 0.5


async def test_a_vote_that_cannot_be_read_is_a_no_and_costs_its_agent():
    """B says nothing readable, C disagrees: one of three. Then B proposes: C has none unreadable of 2, B 1 of 2."""
    rollout = await played("A B C", "hm", "NO", "A B C", "YES", "YES")
    assert rollout.rewards == pytest.approx({"Agent A": 1.1, "Agent B": 1.1 - 0.25, "Agent C": 1.1})
    assert len(rollout.steps) == 6


async def test_an_agent_sees_its_own_values_alone():
    rollout = await played("A B C", "YES", "YES")
    proposal, vote_b, vote_c = (step.prompt[-1]["content"] for step in rollout.steps)
    assert proposal == "You are A. Worth to you: apple 6, bread 3, cheese 1. Who gets what?"
    assert vote_b == "You get bread: 6 of 10. YES or NO?"
    assert vote_c == "You get cheese: 6 of 10. YES or NO?"


async def test_the_examples_are_legal_and_good():
    asked: list[Sequence[Message]] = []

    def reply(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "A A A A" if "Who gets" in messages[-1]["content"] else "YES"

    arena = MultiAgentNegotiationArena(4, client=MockInferenceClient(reply))
    await arena.run_episode("split", arena.draw_artifact())
    for example in asked[0][1:-1:2]:
        assert read_split(example["content"], "ABC", 4) == example["content"].split()
    for example in asked[1][1:-1:2]:
        assert read_vote(example["content"]) is not None


def test_positions_come_from_the_seed_and_a_group_shares_one():
    def batch(seed: int) -> list[object]:
        arena = MultiAgentNegotiationArena(8, group_size=4)
        arena.configure(RunConfig(seed=seed, batch_size=8))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0) != batch(1)
    assert [request.artifact for request in first[:4]] == [first[0].artifact] * 4
    assert all(sorted(row) == [0, 1, 3, 6] for row in first[0].artifact["values"].values())
    assert sorted(first[0].artifact["order"]) == ["A", "B", "C"]
