"""Generate, train, publish, in one process: for notebooks, and to see how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from selfplay_ray.arena import Arena
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.errors import ConfigError
from selfplay_ray.evaluation import eval_requests, play
from selfplay_ray.runlog.metrics import StepMetrics, before_training, step_metrics
from selfplay_ray.training.health import TrainMetrics
from selfplay_ray.types import TrainingRecord

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
) -> list[StepMetrics]:
    """Play a batch, train on it, hand the weights to ``publisher``, ``num_steps`` times; what each step left.

    Without a ``publisher`` the arena's own client gets the weights. ``on_step`` is called after every step. With an
    ``evaluation`` there is a step 0, which is nothing but that.

    Raises:
        ConfigError: the arena's client takes no weights, so that what is trained would never play.
        ErrorBudgetExceeded: more than a tenth of the episodes failed.
    """
    publisher = publisher or _publisher_of(arena)
    budget, history = ErrorBudget(TOLERATED_FAILURES), list[StepMetrics]()
    await arena.on_train_start()
    await publisher.load_adapter(trainer.adapter(), trainer.version)
    asked = eval_requests(arena, evaluation.episodes, greedy=evaluation.greedy) if evaluation else []
    for step in range(0 if evaluation else 1, num_steps + 1):
        metrics = (
            await _step(arena, trainer, publisher, budget, step) if step else before_training(time.time())
        )
        if evaluation and (step % evaluation.every == 0 or step == num_steps):
            values = (await play(arena, asked)).flat()
            metrics = replace(metrics, values={**metrics.values, **values})
        history.append(metrics)
        if on_step:
            on_step(metrics)
    await arena.on_train_end()
    return history


async def _step(
    arena: Arena, trainer: SupportsTraining, publisher: WeightPublisher, budget: ErrorBudget, step: int
) -> StepMetrics:
    started = time.monotonic()
    played = await arena.step()
    for rollout in (rollout for tree in played.results for rollout in tree.all_rollouts()):
        budget.count(rollout)
    waited = time.monotonic() - started
    records = [record for group in played.groups for record in group.records]
    trained = trainer.train_step(records)
    await publisher.load_adapter(trainer.adapter(), trainer.version)
    return step_metrics(
        step=step,
        version=trainer.version,
        time=time.time(),
        groups=played.groups,
        records=records,
        dropped_stale=0,
        train=trained.flat(),
        tokens_per_second=sum(len(record.completion_token_ids) for record in records) / waited,
        learner_wait_seconds=waited,
        engine_wait_seconds=0.0,
    )


def _publisher_of(arena: Arena) -> WeightPublisher:
    client = getattr(arena.runtime, "client", None)
    if not isinstance(client, WeightPublisher):
        raise ConfigError(
            f"{type(client).__name__} takes no new weights, so what is trained would never play; "
            "give simple_training_loop a publisher"
        )
    return client
