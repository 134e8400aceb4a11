"""What one training step leaves in numbers, and the protocol of everything that takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from selfplay_ray.types import RoleStats, RolloutGroup, TrainingRecord

SUMMARY_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One training step.

    ``step`` counts from 1, and 0 is an evaluation before it; ``version`` is the policy version the step produced;
    ``time`` is when it ended, in seconds since the epoch. ``rewards`` is keyed by role. ``finished`` and ``failed``
    count episodes. ``staleness_mean`` and ``staleness_max`` say how many versions the records trained on lagged
    behind; ``dropped_stale`` counts those that lagged too far. ``tokens_per_second`` is what all engines generated.
    ``learner_wait_seconds`` passed waiting for rollouts, ``engine_wait_seconds`` swapping weights.
    ``values`` holds everything else under names with slashes: ``train/loss``, ``rubric/exact/Solver``.
    """

    step: int
    version: int
    time: float
    rewards: Mapping[str, RoleStats]
    finished: int
    failed: int
    dropped_stale: int
    staleness_mean: float
    staleness_max: int
    tokens_per_second: float
    learner_wait_seconds: float
    engine_wait_seconds: float
    values: Mapping[str, float]

    def flat(self) -> dict[str, float]:
        """Every number under one name with slashes, as ``metrics.jsonl`` and Weights & Biases take them."""
        row: dict[str, float] = {name: getattr(self, field) for field, name in FLAT_NAMES.items()}
        for role, stats in self.rewards.items():
            row[f"reward/{role}"] = stats.mean
            row[f"reward_std/{role}"] = stats.std
            row[f"reward_count/{role}"] = stats.count
        return {**row, **self.values}

    def as_json(self) -> dict[str, float | None]:
        """``flat`` with None for what is not a number, which JSON has no word for."""
        return {name: value if math.isfinite(value) else None for name, value in self.flat().items()}

    @classmethod
    def from_flat(cls, row: Mapping[str, float | None]) -> Self:
        """The inverse of ``flat``; None, as JSON has no other way to say it, is NaN.

        Raises:
            KeyError: a name that every step has is missing.
        """
        numbers = {name: math.nan if value is None else value for name, value in row.items()}
        roles = [name.removeprefix("reward/") for name in numbers if name.startswith("reward/")]
        fields = {field: numbers.pop(name) for field, name in FLAT_NAMES.items()}
        rewards = {
            role: RoleStats(
                count=int(numbers.pop(f"reward_count/{role}")),
                mean=numbers.pop(f"reward/{role}"),
                std=numbers.pop(f"reward_std/{role}"),
            )
            for role in roles
        }
        counts = {field: int(fields.pop(field)) for field in COUNTS}
        return cls(rewards=rewards, values=numbers, **counts, **fields)  # type: ignore[arg-type]


FLAT_NAMES = {
    "step": "step",
    "version": "version",
    "time": "time/ended",
    "finished": "episodes/finished",
    "failed": "episodes/failed",
    "dropped_stale": "staleness/dropped",
    "staleness_mean": "staleness/mean",
    "staleness_max": "staleness/max",
    "tokens_per_second": "generation/tokens_per_second",
    "learner_wait_seconds": "time/learner_wait",
    "engine_wait_seconds": "time/engine_wait",
}


COUNTS = ("step", "version", "finished", "failed", "dropped_stale", "staleness_max")
"""The fields that are whole numbers, which a reader of JSON may take for others."""


class MetricLogger(Protocol):
    """A place where training steps are logged: a file, a terminal, a service."""

    def log_step(self, metrics: StepMetrics) -> None: ...

    def close(self) -> None: ...


def step_metrics(
    *,
    step: int,
    version: int,
    time: float,
    groups: Sequence[RolloutGroup],
    records: Sequence[TrainingRecord],
    dropped_stale: int,
    train: Mapping[str, float],
    tokens_per_second: float,
    learner_wait_seconds: float,
    engine_wait_seconds: float,
) -> StepMetrics:
    """The metrics of the step that trained version - 1 on ``records``, which are the fresh ones of ``groups``.

    ``train`` are the trainer's numbers under its own names, logged as ``train/…``.
    """
    lags = [version - 1 - record.policy_version for record in records]
    sums = pooled_metrics(groups)
    return StepMetrics(
        step=step,
        version=version,
        time=time,
        rewards=pooled_rewards(groups),
        finished=int(sums.pop("episodes/finished", 0)),
        failed=int(sums.pop("episodes/failed", 0)),
        dropped_stale=dropped_stale,
        staleness_mean=sum(lags) / len(lags) if lags else 0.0,
        staleness_max=max(lags, default=0),
        tokens_per_second=tokens_per_second,
        learner_wait_seconds=learner_wait_seconds,
        engine_wait_seconds=engine_wait_seconds,
        values={**{f"train/{name}": value for name, value in train.items()}, **sums},
    )


def before_training(time: float) -> StepMetrics:
    """Step 0, at which nothing is played or trained: there to be evaluated."""
    return step_metrics(
        step=0,
        version=0,
        time=time,
        groups=(),
        records=(),
        dropped_stale=0,
        train={},
        tokens_per_second=0.0,
        learner_wait_seconds=0.0,
        engine_wait_seconds=0.0,
    )


def pooled_rewards(groups: Iterable[RolloutGroup]) -> dict[str, RoleStats]:
    """Each role's rewards over all groups, as if they had been one.

    With n_g, m_g and s_g a group's count, mean and population standard deviation:
    m = sum(n_g m_g) / n and s^2 = sum(n_g (s_g^2 + (m_g - m)^2)) / n.
    """
    by_role: dict[str, list[RoleStats]] = {}
    for group in groups:
        for role, stats in group.rewards.items():
            by_role.setdefault(role, []).append(stats)
    return {role: _pooled(parts) for role, parts in by_role.items()}


def _pooled(parts: Sequence[RoleStats]) -> RoleStats:
    count = sum(part.count for part in parts)
    if count == 0:
        return RoleStats(0, 0.0, 0.0)
    mean = math.fsum(part.count * part.mean for part in parts) / count
    variance = math.fsum(part.count * (part.std**2 + (part.mean - mean) ** 2) for part in parts) / count
    return RoleStats(count, mean, math.sqrt(variance))


def pooled_metrics(groups: Iterable[RolloutGroup]) -> dict[str, float]:
    """The groups' metrics in one: those named ``rubric/…`` averaged (by roots), the others, counts, summed."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for group in groups:
        for name, value in group.metrics.items():
            weight = group.roots if name.startswith("rubric/") else 1
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return {
        name: total / weights[name] if name.startswith("rubric/") and weights[name] else total
        for name, total in sums.items()
    }


@dataclass(frozen=True, slots=True)
class RewardChange:
    """A role's mean reward over the first and over the last ``steps`` steps in which it was scored."""

    role: str
    steps: int
    first: float
    last: float

    @property
    def difference(self) -> float:
        return self.last - self.first


def reward_changes(history: Iterable[StepMetrics]) -> list[RewardChange]:
    """For every role, how its mean reward moved from the first five steps to the last five.

    A run of fewer than ten steps compares its first half with its second, so that no step is on both sides.
    """
    means: dict[str, list[float]] = {}
    for metrics in history:
        for role, stats in metrics.rewards.items():
            means.setdefault(role, []).append(stats.mean)
    changes = []
    for role, values in means.items():
        steps = max(1, min(SUMMARY_STEPS, len(values) // 2))
        first, last = sum(values[:steps]) / steps, sum(values[-steps:]) / steps
        changes.append(RewardChange(role, steps, first, last))
    return changes
