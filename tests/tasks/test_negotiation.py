"""Negotiation: moves, endings and both players' rewards, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.credit import RAECredit
from selfplay_ray.jobs.train_negotiation import NegotiationConfig, make_arena
from selfplay_ray.tasks.negotiation import NegotiationArena
from selfplay_ray.tasks.trades import Offer, is_possible, read_move, traded
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Rollout

DEAL = {
    "inventories": {"Alice": {"wood": 4, "stone": 0, "gold": 0}, "Bob": {"wood": 0, "stone": 1, "gold": 2}},
    "values": {"Alice": {"wood": 1, "stone": 1, "gold": 3}, "Bob": {"wood": 2, "stone": 1, "gold": 1}},
    "first": "Alice",
}
"""To Alice everything is worth 4 × 1 + 1 × 1 + 2 × 3 = 11, to Bob 4 × 2 + 1 × 1 + 2 × 1 = 11."""


async def played(*scripted_moves: str, first: str = "Alice", **options: Any) -> Rollout:
    moves = iter(scripted_moves)
    arena = NegotiationArena(1, client=MockInferenceClient(lambda messages: next(moves)), **options)
    rollout = (await arena.run_episode("negotiation", {**DEAL, "first": first})).rollout
    assert rollout.error is None, rollout.error
    return rollout


@pytest.mark.parametrize(
    ("text", "move"),
    [
        ("OFFER: 2 wood for 1 gold", Offer("Alice", 2, "wood", 1, "gold")),
        ("Offer: 2 golds for 4 stones", Offer("Alice", 2, "gold", 4, "stone")),
        ("I have lots of wood.\nOFFER:2 wood for 1 gold, fine?", Offer("Alice", 2, "wood", 1, "gold")),
        ("OFFER: 1 wood for 1 gold. No, OFFER: 3 wood for 1 gold", Offer("Alice", 3, "wood", 1, "gold")),
        ("I could ACCEPT, but OFFER: 1 wood for 2 gold", Offer("Alice", 1, "wood", 2, "gold")),
        ("OFFER: 1 wood for 2 gold? Well: ACCEPT.", "ACCEPT"),
        ("REJECT", "REJECT"),
        ("Offer: 2 wood for 1 gold. Accept?", "ACCEPT"),
        ("Offer: 2 wood for 1 gold", Offer("Alice", 2, "wood", 1, "gold")),
        ("offer: 2 wood for 1 gold", Offer("Alice", 2, "wood", 1, "gold")),
        ("oFFer: 2 Wood FOR 1 GOLDS", Offer("Alice", 2, "wood", 1, "gold")),
        ("I accept", None),  # talk
        ("I won't Accept that.", None),
        ("I won’t ACCEPT. offer: 1 wood for 1 gold", Offer("Alice", 1, "wood", 1, "gold")),
        ("offer: 1 wood for 1 gold, which you can not Reject", Offer("Alice", 1, "wood", 1, "gold")),
        ("I will NEVER Accept", None),
        ("Why not? Accept", "ACCEPT"),
        ("UNACCEPTABLE", None),
        ("OFFER: wood for gold", None),
        ("OFFER: -1 wood for 1 gold", None),
        ("OFFER: 1000 wood for 1 gold", None),
        ("", None),
    ],
)
def test_the_last_move_in_a_text_counts(text: str, move: Offer | str | None):
    assert read_move("Alice", text) == move


@pytest.mark.parametrize(
    ("offer", "legal"),
    [
        (Offer("Alice", 4, "wood", 2, "gold"), True),
        (Offer("Alice", 5, "wood", 2, "gold"), False),  # she has 4
        (Offer("Alice", 4, "wood", 3, "gold"), False),  # he has 2
        (Offer("Alice", 0, "wood", 1, "gold"), False),
        (Offer("Alice", 1, "wood", 0, "gold"), False),  # a gift is no trade
        (Offer("Alice", 1, "wood", 1, "wood"), False),
        (Offer("Alice", 1, "iron", 1, "gold"), False),
        (Offer("Bob", 1, "stone", 4, "wood"), True),
    ],
)
def test_nobody_offers_what_there_is_not(offer: Offer, legal: bool):
    assert is_possible(offer, DEAL["inventories"]) == legal


def test_a_trade_changes_both_inventories_and_not_the_ones_before():
    after = traded(Offer("Alice", 3, "wood", 2, "gold"), DEAL["inventories"])
    assert after == {
        "Alice": {"wood": 1, "stone": 0, "gold": 2},
        "Bob": {"wood": 3, "stone": 1, "gold": 0},
    }
    assert DEAL["inventories"]["Alice"]["wood"] == 4


async def test_a_deal_is_worth_what_it_changes():
    """3 wood for 2 gold. Alice: 2 × 3 - 3 × 1 = 3 of 11. Bob: 3 × 2 - 2 × 1 = 4 of 11."""
    rollout = await played("OFFER: 3 wood for 2 gold", "Fine. ACCEPT")
    assert rollout.rewards == pytest.approx({"Alice": 3 / 11, "Bob": 4 / 11})
    assert rollout.extras["ending"] == "deal"
    assert not rollout.truncated
    assert rollout.metrics["deal/Alice"] == 1.0
    assert rollout.metrics["no_deal/Alice"] == rollout.metrics["truncated/Bob"] == 0.0


async def test_a_bad_deal_costs_the_one_who_made_it():
    """4 wood for 1 stone. Alice: 1 - 4 = -3 of 11. Bob: 4 × 2 - 1 = 7 of 11."""
    rollout = await played("OFFER: 4 wood for 1 stone", "ACCEPT")
    assert rollout.rewards == pytest.approx({"Alice": -3 / 11, "Bob": 7 / 11})


async def test_the_last_move_that_is_allowed_is_played():
    rollout = await played("OFFER: 3 wood for 2 gold", "ACCEPT", max_turns=2)
    assert (rollout.extras["ending"], rollout.truncated) == ("deal", False)
    assert rollout.rewards["Bob"] == pytest.approx(4 / 11)


async def test_at_the_limit_it_is_cut_off_which_is_no_refusal():
    rollout = await played("OFFER: 3 wood for 2 gold", "OFFER: 1 gold for 4 wood", max_turns=2)
    assert (rollout.extras["ending"], rollout.truncated) == ("truncated", True)
    assert rollout.rewards == {"Alice": 0.0, "Bob": 0.0}
    assert (rollout.metrics["truncated/Alice"], rollout.metrics["no_deal/Alice"]) == (1.0, 0.0)


async def test_a_counter_offer_takes_the_place_of_the_offer():
    """Bob's: 1 gold for 2 wood. Alice: 3 - 2 = 1 of 11. Bob: 4 - 1 = 3 of 11."""
    rollout = await played("OFFER: 4 wood for 2 gold", "OFFER: 1 gold for 2 wood", "ACCEPT")
    assert rollout.rewards == pytest.approx({"Alice": 1 / 11, "Bob": 3 / 11})


async def test_an_offer_may_be_turned_down_and_another_made():
    rollout = await played("OFFER: 4 wood for 2 gold", "REJECT", "OFFER: 3 wood for 2 gold", "ACCEPT")
    assert rollout.rewards == pytest.approx({"Alice": 3 / 11, "Bob": 4 / 11})


async def test_who_rejects_where_there_is_no_offer_leaves():
    rollout = await played("OFFER: 4 wood for 2 gold", "REJECT", "REJECT")
    assert (rollout.extras["ending"], rollout.truncated) == ("no deal", False)
    assert rollout.rewards == {"Alice": 0.0, "Bob": 0.0}
    assert rollout.metrics["no_deal/Alice"] == 1.0


@pytest.mark.parametrize(
    ("moves", "by", "unreadable"),
    [
        (("OFFER: 5 wood for 1 gold",), "Alice", 0.0),
        (("OFFER: 1 wood for 3 gold",), "Alice", 0.0),  # the offerer's fault, before anybody could accept
        (("ACCEPT",), "Alice", 0.0),  # what?
        (("OFFER: 1 wood for 1 gold", "REJECT", "ACCEPT"), "Alice", 0.0),  # it doesn't stand any more
        (("OFFER: 1 wood for 1 gold", "Let me think."), "Bob", 1.0),
        (("OFFER: 1 wood for 1 gold", ""), "Bob", 1.0),
    ],
)
async def test_a_forfeit_costs_who_made_it_and_pays_nobody(
    moves: tuple[str, ...], by: str, unreadable: float
):
    rollout = await played(*moves)
    other = "Bob" if by == "Alice" else "Alice"
    assert rollout.rewards == {by: -0.5, other: 0.0}
    assert rollout.extras["ending"] == "forfeited"
    assert (rollout.metrics[f"forfeit/{by}"], rollout.metrics[f"forfeit/{other}"]) == (1.0, 0.0)
    assert rollout.metrics[f"unreadable/{by}"] == unreadable
    assert rollout.metrics["no_deal/Alice"] == rollout.metrics["truncated/Alice"] == 0.0


async def test_who_begins_is_the_deals_to_say_and_values_stay_hidden():
    rollout = await played("OFFER: 1 stone for 1 wood", "ACCEPT", first="Bob")
    bob, alice = rollout.steps
    assert (bob.role_id, alice.role_id) == ("Bob", "Alice")
    assert bob.prompt[-1]["content"] == (
        "You have 1 stone, 2 gold. Alice has 4 wood. To you wood is worth 2, stone 1, gold 1. Your move?"
    )
    assert alice.prompt[-1]["content"] == (
        "Bob: OFFER: 1 stone for 1 wood\n\n"
        "You have 4 wood. Bob has 1 stone, 2 gold. To you wood is worth 1, stone 1, gold 3. Your move?"
    )
    assert "Alice has 3 gold" in bob.prompt[0]["content"]  # the example speaks of the other by name


async def test_a_later_turn_continues_the_earlier():
    rollout = await played("OFFER: 4 wood for 2 gold", "REJECT", "OFFER: 3 wood for 2 gold", "ACCEPT")
    first, _, third, _ = rollout.steps
    assert third.prompt[: len(first.prompt) + 1] == [*first.prompt, *first.completion]
    assert third.prompt[-1]["content"] == "Bob: REJECT\n\nYour move?"


def test_deals_come_from_the_seed_and_flags_reach_the_arena():
    def batch(seed: int) -> list[Any]:
        arena = make_arena(
            NegotiationConfig(
                seed=seed, max_turns=10, rae_decay=0.9, temperature=0.7, max_tokens=30, batch_size=3
            )
        )
        arena.configure(RunConfig(seed=seed, batch_size=3))
        assert isinstance(arena.credit_assigner, RAECredit)
        assert arena.credit_assigner.decay == 0.9
        assert (arena.role("Bob").temperature, arena.role("Bob").max_tokens) == (0.7, 30)
        assert arena.episode("negotiation").max_turns == 10
        return [request.artifact for request in arena.next_batch()]

    assert batch(0) == batch(0) != batch(1)
    assert all(1 <= count <= 4 for deal in batch(0) for count in deal["inventories"]["Bob"].values())
