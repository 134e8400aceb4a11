"""Rewards: one or several functions of a finished rollout, weighted and summed per role."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfplay_ray.errors import RubricError
from selfplay_ray.types import Rollout

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena

Scores = Mapping[str, float | None]
"""A reward for each role; None for one that nobody can tell the worth of."""

RewardFn = Callable[[Rollout, "Arena"], Scores | Awaitable[Scores]]


class Rubric:
    """Scores a rollout: ``rewards[role] = sum over functions of weight * function(rollout, arena)[role]``.

    Each function, sync or async, returns a reward for the roles it has something to say about. What it
    returned is kept as metric ``function/role``; a function of weight 0 is a metric and nothing else.
    A role that spoke and that no function speaks of gets 0.

    None for a role is an abstention: it is *unscored* in this rollout, whatever the other functions say of it. It has
    no reward, moves no baseline, and isn't trained on. From a function of weight 0 None is no metric and nothing else.

    Raises:
        ValueError: there isn't one finite weight a function.
    """

    def __init__(self, funcs: Sequence[RewardFn] = (), weights: Sequence[float] | None = None) -> None:
        self.funcs = list(funcs)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.funcs)
        if len(self.weights) != len(self.funcs):
            raise ValueError(f"a rubric of {len(self.funcs)} functions was given {len(self.weights)} weights")
        if not all(map(math.isfinite, self.weights)):
            raise ValueError(f"a rubric was given the weights {self.weights}; they must be finite")

    async def score(self, rollout: Rollout, arena: Arena) -> None:
        """Set ``rollout.rewards`` and ``rollout.unscored``, and add to ``rollout.metrics``.

        Raises:
            RubricError: a function returned something else than finite numbers, or None, for known roles.
        """
        rewards = dict.fromkeys(rollout.roles, 0.0)
        abstained: list[str] = []
        known = {*rollout.roles, *arena.roles}
        for func, weight in zip(self.funcs, self.weights, strict=True):
            name = getattr(func, "__name__", type(func).__name__)
            for role, value in checked_scores(name, await _call(func, rollout, arena), known).items():
                if value is None:
                    abstained += [role] if weight else []
                    continue
                if weight:
                    rewards[role] = rewards.get(role, 0.0) + weight * value
                rollout.metrics[f"{name}/{role}"] = value
        checked_scores("total", rewards, known)
        rollout.rewards, rollout.unscored = rewards, []
        rollout.leave_unscored(*abstained)


async def _call(func: RewardFn, rollout: Rollout, arena: Arena) -> object:
    scores = func(rollout, arena)
    return await scores if inspect.isawaitable(scores) else scores


def checked_scores(name: str, scores: Any, known: set[str]) -> dict[str, float | None]:
    """``scores`` as finite floats, or None, for roles in ``known``, or RubricError naming the function ``name``."""
    if not isinstance(scores, Mapping):
        raise RubricError(f"reward function {name} returned {scores!r}; it must return {{role: reward}}")
    for role, value in scores.items():
        if role not in known:
            raise RubricError(f"reward function {name} scored unknown role {role!r}; known: {sorted(known)}")
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise RubricError(
                f"reward function {name} gave role {role!r} {value!r}, which is no finite number"
            )
    return {role: None if value is None else float(value) for role, value in scores.items()}
