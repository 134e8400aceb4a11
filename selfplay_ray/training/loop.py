"""Generate, train, publish, in one process: for notebooks, and to see how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from selfplay_ray.arena import Arena
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.metrics import StepMetrics, step_metrics
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


async def simple_training_loop(
    arena: Arena,
    trainer: SupportsTraining,
    num_steps: int,
    publisher: WeightPublisher | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> list[StepMetrics]:
    """Play a batch, train on it, hand the weights to ``publisher``, ``num_steps`` times; what each step left.

    Without a ``publisher`` the arena's own client gets the weights. ``on_step`` is called after every step.

    Raises:
        ConfigError: the arena's client takes no weights, so that what is trained would never play.
        ErrorBudgetExceeded: more than a tenth of the episodes failed.
    """
    publisher = publisher or _publisher_of(arena)
    budget, history = ErrorBudget(TOLERATED_FAILURES), []
    await arena.on_train_start()
    await publisher.load_adapter(trainer.adapter(), trainer.version)
    for step in range(1, num_steps + 1):
        started = time.monotonic()
        played = await arena.step()
        for rollout in (rollout for tree in played.results for rollout in tree.all_rollouts()):
            budget.count(rollout)
        waited = time.monotonic() - started
        records = [record for group in played.groups for record in group.records]
        trained = trainer.train_step(records)
        await publisher.load_adapter(trainer.adapter(), trainer.version)
        history.append(
            step_metrics(
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
        )
        if on_step:
            on_step(history[-1])
    await arena.on_train_end()
    return history


def _publisher_of(arena: Arena) -> WeightPublisher:
    client = getattr(arena.runtime, "client", None)
    if not isinstance(client, WeightPublisher):
        raise ConfigError(
            f"{type(client).__name__} takes no new weights, so what is trained would never play; "
            "give simple_training_loop a publisher"
        )
    return client
