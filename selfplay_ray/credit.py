"""From rewards to advantages: who is compared with whom, and against which baseline.

Comparisons are made at every level of a tree: a role in an episode is compared with the same role in the
*sibling* episodes of the same type, under the same parent (or, where requests name a group, in that group).
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay_ray.errors import CreditError
from selfplay_ray.types import GenerateResult, Rollout

Weights = dict[tuple[str, int], float]
"""Advantages keyed by (rollout id, step index)."""


@dataclass(frozen=True, slots=True)
class ComparisonGroup:
    """One role in the sibling episodes of one type: the rollouts whose rewards are comparable."""

    role_id: str
    episode_type: str
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        """One reward a rollout.

        Raises:
            CreditError: a rollout has no reward for the role.
        """
        for rollout in self.rollouts:
            if self.role_id not in rollout.rewards:
                raise CreditError(
                    f"rollout {rollout.id} has no reward for role {self.role_id!r}; was it scored?"
                )
        return [rollout.rewards[self.role_id] for rollout in self.rollouts]


def comparison_groups(results: Sequence[GenerateResult]) -> Iterator[ComparisonGroup]:
    """The groups among ``results``, then among the children of each, and so on down.

    Left out: rollouts that failed, everything below a request that isn't trainable, roles that never spoke, are
    frozen, or were left unscored in that rollout.

    Raises:
        CreditError: a named group mixes episode types, or a role is unscored and has a reward.
    """
    trainable = [result for result in results if result.is_trainable]
    groups: dict[tuple[str | None, str, str], list[Rollout]] = {}
    for result in trainable:
        for role in _learning_roles(result.rollout):
            groups.setdefault((result.group, result.rollout.episode_type, role), []).append(result.rollout)
    _refuse_mixed_types(groups)
    for (_, episode_type, role), rollouts in groups.items():
        yield ComparisonGroup(role, episode_type, tuple(rollouts))
    for result in trainable:
        yield from comparison_groups(result.children)


def _learning_roles(rollout: Rollout) -> list[str]:
    if rollout.error is not None:
        return []
    for role in rollout.unscored:
        if role in rollout.rewards:
            raise CreditError(
                f"rollout {rollout.id} has a reward for role {role!r}, which it says is unscored; leave one of them out"
            )
    return list(dict.fromkeys(step.role_id for step in rollout.learning_steps))


def _refuse_mixed_types(groups: Mapping[tuple[str | None, str, str], list[Rollout]]) -> None:
    types: dict[str, set[str]] = {}
    for name, episode_type, _ in groups:
        if name is not None:
            types.setdefault(name, set()).add(episode_type)
    for name, mixed in types.items():
        if len(mixed) > 1:
            raise CreditError(
                f"group {name!r} mixes episode types {sorted(mixed)}; their rewards can't be compared"
            )


class CreditAssigner(ABC):
    """Computes the advantage of every step of every trainable rollout in some trees.

    ``zero_spread`` counts the groups of the last :meth:`compute` in which all rewards were equal.
    """

    zero_spread: int = 0

    def compute(self, results: Sequence[GenerateResult]) -> Weights:
        """{(rollout id, step index): advantage}, for the scored steps of trainable rollouts that didn't fail.

        Raises:
            CreditError: a reward is missing, or contradicted, or a named group mixes episode types.
        """
        weights: Weights = {}
        self.zero_spread = 0
        groups = list(comparison_groups(results))
        for group in groups:
            self.zero_spread += len(set(group.rewards)) <= 1
            for rollout, advantage in zip(group.rollouts, self.advantages(group), strict=True):
                for step in rollout.steps:
                    if step.role_id == group.role_id:
                        weights[rollout.id, step.index] = advantage
        self.update(groups)
        return weights

    @abstractmethod
    def advantages(self, group: ComparisonGroup) -> list[float]:
        """One advantage for each rollout of ``group``."""

    def update(self, groups: Sequence[ComparisonGroup]) -> None:  # noqa: B027 - most have nothing to learn
        """Learn from the rewards seen, after they were credited."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up what :meth:`state_dict` gave."""


class GRPOCredit(CreditAssigner):
    """A = R - mean(group), optionally divided by (std(group) + 1e-4).

    Shao et al. 2024, DeepSeekMath, section 4.1.2; without ``normalize`` it is Dr. GRPO (Liu et al. 2025).
    ``std`` is that of the population. A group of one, or one without spread, has advantage 0.
    ``positive_only`` cuts negative advantages to 0.
    """

    def __init__(self, normalize: bool = False, positive_only: bool = False) -> None:
        self.normalize = normalize
        self.positive_only = positive_only

    def advantages(self, group: ComparisonGroup) -> list[float]:
        rewards = group.rewards
        if len(set(rewards)) == 1:  # the mean of equal floats need not be exactly one of them
            return [0.0] * len(rewards)
        mean = statistics.fmean(rewards)
        scale = statistics.pstdev(rewards) + 1e-4 if self.normalize else 1.0
        centred = [(reward - mean) / scale for reward in rewards]
        return [max(advantage, 0.0) for advantage in centred] if self.positive_only else centred


class RLOOCredit(CreditAssigner):
    """A = R - mean of the others in the group (Ahmadian et al. 2024, equation 8). A group of one has 0."""

    def advantages(self, group: ComparisonGroup) -> list[float]:
        rewards = group.rewards
        if len(set(rewards)) == 1:
            return [0.0] * len(rewards)
        total, others = sum(rewards), len(rewards) - 1
        return [reward - (total - reward) / others for reward in rewards]


class ConstantCredit(CreditAssigner):
    """A = value * R: REINFORCE without a baseline."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def advantages(self, group: ComparisonGroup) -> list[float]:
        return [self.value * reward for reward in group.rewards]


class EpisodicRewardCredit(ConstantCredit):
    """A = R."""

    def __init__(self) -> None:
        super().__init__(1.0)


@dataclass(slots=True)
class _Average:
    """An exponential moving average that starts from nothing; ``value`` is bias-corrected (Adam, section 3)."""

    raw: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        return self.raw / self.weight if self.weight else 0.0

    def add(self, rewards: Sequence[float], decay: float) -> None:
        """As many updates as rewards, in a way that doesn't depend on their order: each counts as their mean."""
        kept = decay ** len(rewards)
        self.raw = kept * self.raw + (1 - kept) * statistics.fmean(rewards)
        self.weight = kept * self.weight + (1 - kept)


class RAECredit(CreditAssigner):
    """A = R - b, with b an exponential average of past rewards per (episode type, role).

    Role-conditioned advantage estimation: Liu et al. 2025, SPIRAL, equation 5: b <- decay * b + (1 - decay) * R.
    The baseline is bias-corrected, is used before it is updated, and is updated once per :meth:`compute` with
    all rewards of that type and role, at every level of the trees, so it doesn't depend on their order.
    """

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self._baselines: dict[tuple[str, str], _Average] = {}

    def baseline(self, episode_type: str, role_id: str) -> float:
        """The current baseline; 0 before anything was seen."""
        return self._baselines.get((episode_type, role_id), _Average()).value

    def advantages(self, group: ComparisonGroup) -> list[float]:
        baseline = self.baseline(group.episode_type, group.role_id)
        return [reward - baseline for reward in group.rewards]

    def update(self, groups: Sequence[ComparisonGroup]) -> None:
        seen: dict[tuple[str, str], list[float]] = {}
        for group in groups:
            seen.setdefault((group.episode_type, group.role_id), []).extend(group.rewards)
        for key, rewards in seen.items():
            self._baselines.setdefault(key, _Average()).add(rewards, self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {
            "baselines": [[*key, average.raw, average.weight] for key, average in self._baselines.items()]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._baselines = {
            (kind, role): _Average(raw, weight) for kind, role, raw, weight in state["baselines"]
        }


def apply_credit(results: Sequence[GenerateResult], weights: Mapping[tuple[str, int], float]) -> None:
    """Write ``weights`` into the steps of the trees as ``advantage``, and each role's reward as ``reward``. Both are 0
    where there is none: what failed, or is unscored, is never trained on."""
    for result in results:
        for rollout in result.all_rollouts():
            for step in rollout.steps:
                step.reward = rollout.rewards.get(step.role_id, 0.0)
                step.advantage = weights.get((rollout.id, step.index), 0.0)
