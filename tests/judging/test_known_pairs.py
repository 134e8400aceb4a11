"""How often a judge finds the better one of a known pair."""

from __future__ import annotations

import pytest
from scripted_judge import arena_with, prefers

from selfplay_ray.errors import ConfigError
from selfplay_ray.judging import KnownPair, PairwiseJudge, agreement, agreement_metrics
from selfplay_ray.types import Rollout

PAIRS = [
    KnownPair("Sums", "good: 4", "5"),
    KnownPair("Sums", "6", "good: 7"),  # on which the scripted judge is wrong
    KnownPair("Sums", "8", "9"),  # and here it sees no difference
    KnownPair("Sums", "good: 2", "3"),
]


async def test_agreement_counts_what_the_judge_got_right() -> None:
    arena, _ = arena_with(prefers("good"))
    found = await agreement(PairwiseJudge("Which is right, A or B?"), arena, PAIRS)
    assert (found.agreed, found.abstained) == (2 / 4, 0)


async def test_an_abstention_is_no_agreement() -> None:
    arena, _ = arena_with(lambda _: "well")
    found = await agreement(PairwiseJudge("Which is right, A or B?"), arena, PAIRS)
    assert (found.agreed, found.abstained) == (0, 1)


async def test_without_pairs_there_is_nothing_to_check() -> None:
    arena, _ = arena_with(prefers("good"))
    with pytest.raises(ConfigError, match="give one or more"):
        await agreement(PairwiseJudge("?"), arena, [])


async def test_as_a_metric_it_rewards_nobody_and_asks_once() -> None:
    arena, client = arena_with(prefers("good"))
    metric = agreement_metrics(PairwiseJudge("Which is right, A or B?"), PAIRS)
    for number in range(3):
        rollout = Rollout(str(number), "any")
        assert await metric(rollout, arena) == {}
        assert rollout.metrics == {"judge/agreement": 0.5}
    assert len(client.calls) == 2 * len(PAIRS)
