"""Generate, train, publish, in one process: for notebooks, and to see how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np

from selfplay_ray.arena import Arena
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.errors import ConfigError, TrainingError
from selfplay_ray.evaluation import eval_requests, play
from selfplay_ray.runlog.metrics import StepMetrics, before_training, step_metrics
from selfplay_ray.training.active_sampling import trainable, why_nothing
from selfplay_ray.training.health import TrainMetrics
from selfplay_ray.types import RolloutGroup, TrainingRecord

TOLERATED_FAILURES = 0.1


class SupportsTraining(Protocol):
    """What the loop asks of a trainer; see :class:`~selfplay_ray.training.trainer.Trainer`."""

    @property
    def version(self) -> int: ...

    def adapter(self) -> Mapping[str, np.ndarray]: ...

    def train_step(self, records: Sequence[TrainingRecord]) -> TrainMetrics: ...


@runtime_checkable
class WeightPublisher(Protocol):
    """Where new weights go: an engine, say."""

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None: ...


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """An evaluation before the first step, after every ``every`` steps, and after the last; of the same ``episodes``
    each time."""

    every: int = 10
    episodes: int = 32
    greedy: bool = True


async def simple_training_loop(
    arena: Arena,
    trainer: SupportsTraining,
    num_steps: int,
    publisher: WeightPublisher | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
    evaluation: EvaluationSettings | None = None,
    *,
    min_trainable: int = 1,
    max_extra_batches: int = 7,
) -> list[StepMetrics]:
    """Play a batch, train on it, hand the weights to ``publisher``, ``num_steps`` times; what each step left.

    Without a ``publisher`` the arena's own client gets the weights. ``on_step`` is called after every step. With an
    ``evaluation`` there is a step 0, which is nothing but that. A step with fewer than ``min_trainable`` records that
    have an advantage plays up to ``max_extra_batches`` more; with 0 it takes what one batch gives.

    Raises:
        ConfigError: the arena's client takes no weights, so that what is trained would never play.
        ErrorBudgetExceeded: more than a tenth of the episodes failed.
        TrainingError: also several batches had nothing to train on; says why.
    """
    loop = _Loop(arena, trainer, publisher or _publisher_of(arena), min_trainable, max_extra_batches)
    history: list[StepMetrics] = []
    await arena.on_train_start()
    await loop.publish()
    asked = eval_requests(arena, evaluation.episodes, greedy=evaluation.greedy) if evaluation else []
    for step in range(0 if evaluation else 1, num_steps + 1):
        metrics = await loop.step(step) if step else before_training(time.time())
        if evaluation and (step % evaluation.every == 0 or step == num_steps):
            values = (await play(arena, asked)).flat()
            metrics = replace(metrics, values={**metrics.values, **values})
        history.append(metrics)
        if on_step:
            on_step(metrics)
    await arena.on_train_end()
    return history


@dataclass(slots=True)
class _Loop:
    """What a step is taken with."""

    arena: Arena
    trainer: SupportsTraining
    publisher: WeightPublisher
    min_trainable: int
    max_extra_batches: int
    budget: ErrorBudget = field(default_factory=lambda: ErrorBudget(TOLERATED_FAILURES))

    async def publish(self) -> None:
        await self.publisher.load_adapter(self.trainer.adapter(), self.trainer.version)

    async def step(self, number: int) -> StepMetrics:
        started = time.monotonic()
        groups, batches = await self._play(number)
        waited = time.monotonic() - started
        records = _records(groups)
        trained = self.trainer.train_step(records)
        await self.publish()
        return step_metrics(
            step=number,
            version=self.trainer.version,
            time=time.time(),
            groups=groups,
            records=records,
            dropped_stale=0,
            train={**trained.flat(), "extra_batches": batches - 1},
            tokens_per_second=sum(len(record.completion_token_ids) for record in records) / waited,
            learner_wait_seconds=waited,
            engine_wait_seconds=0.0,
        )

    async def _play(self, number: int) -> tuple[list[RolloutGroup], int]:
        """The groups of as many batches as there is enough to train on in, and how many that were."""
        groups: list[RolloutGroup] = []
        for batches in range(1, self.max_extra_batches + 2):
            played = await self.arena.step()
            for rollout in (rollout for tree in played.results for rollout in tree.all_rollouts()):
                self.budget.count(rollout)
            groups += played.groups
            enough = trainable(_records(groups), every=False)
            if enough >= self.min_trainable:
                return groups, batches
        if enough:
            return groups, batches
        raise TrainingError(
            f"step {number}: {why_nothing(groups, _records(groups), 0)}. Grade the reward more finely"
        )


def _records(groups: Sequence[RolloutGroup]) -> list[TrainingRecord]:
    return [record for group in groups for record in group.records]


def _publisher_of(arena: Arena) -> WeightPublisher:
    client = getattr(arena.runtime, "client", None)
    if not isinstance(client, WeightPublisher):
        raise ConfigError(
            f"{type(client).__name__} takes no new weights, so what is trained would never play; "
            "give simple_training_loop a publisher"
        )
    return client
