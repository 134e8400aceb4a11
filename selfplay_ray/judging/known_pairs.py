"""Is the judge any good? Pairs of which the better one is known, and how often it finds it."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay_ray.errors import ConfigError

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena
    from selfplay_ray.judging.pairwise import PairwiseJudge
    from selfplay_ray.types import Rollout


@dataclass(frozen=True, slots=True)
class KnownPair:
    """Two texts about the same thing, one plainly better than the other."""

    about: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """The shares of pairs of which the judge prefers the better one, and on which it abstains. Ties are neither."""

    agreed: float
    abstained: float


async def agreement(judge: PairwiseJudge, arena: Arena, pairs: Sequence[KnownPair]) -> Agreement:
    """Let ``judge`` compare all ``pairs``.

    Raises:
        ConfigError: there are none.
        InferenceError: the model could not answer.
    """
    if not pairs:
        raise ConfigError("a judge can't be checked against no pairs; give one or more")
    winners = [(await judge.compare(arena, pair.better, pair.worse, pair.about)).winner for pair in pairs]
    return Agreement(
        statistics.fmean(winner == "first" for winner in winners),
        statistics.fmean(winner is None for winner in winners),
    )


def agreement_metrics(
    judge: PairwiseJudge, pairs: Sequence[KnownPair]
) -> Callable[[Rollout, Arena], Awaitable[Mapping[str, float]]]:
    """For a rubric: rewards nobody, and leaves ``judge/agreement`` among the rollout's metrics.

    A judge asks each pair once and remembers the answer, so it costs nothing after the first rollout.
    """

    async def judge_agreement(rollout: Rollout, arena: Arena) -> Mapping[str, float]:
        rollout.metrics["judge/agreement"] = (await agreement(judge, arena, pairs)).agreed
        return {}

    return judge_agreement
