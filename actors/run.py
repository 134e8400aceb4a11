"""A training run on a cluster, from its first step to its last: what every job calls."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import ray

from selfplay_ray.actors.cluster import Cluster, ray_cluster
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.interrupts import Interrupts
from selfplay_ray.actors.spec import ClusterSpec
from selfplay_ray.actors.watchdog import Watchdog
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ActorLostError, ClusterError, UnavailableError
from selfplay_ray.models import resolve_model
from selfplay_ray.runlog.display import Display, summary
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.metrics import MetricLogger, StepMetrics
from selfplay_ray.runlog.wandb_logger import wandb_logger

logger = logging.getLogger(__name__)

STATUS_SECONDS = 0.5
NOTHING_TAKEN = -1
"""The step before step 0, which is but an evaluation."""
TOLERATED_LOSSES = 5
"""How often the learner may be lost between one step and the next: what kills it may be the step."""


def train(
    arena: Arena,
    config: RunConfig,
    task: str = "run",
    spec: ClusterSpec | None = None,
    *,
    live: bool | None = None,
) -> list[StepMetrics]:
    """Train ``arena``'s roles for ``config.num_steps`` steps, and return what each step left in numbers.

    Everything the run says is in ``config.output_dir/<name>/``; see :class:`~selfplay_ray.runlog.RunLog`. With
    ``config.resume`` it goes on with the run there; what that had left is returned as well. ``live`` is whether a live
    view is drawn; None draws one in a terminal that can show it.

    Raises:
        ConfigError: the run's folder is taken, or the arena's batch doesn't fit; a run can't be gone on with like this.
        ModelError: there is no such model.
        ErrorBudgetExceeded: too many episodes failed.
        ClusterError: an actor was lost, or no step was taken for ``config.step_timeout`` seconds.
    """
    history: list[StepMetrics] = []
    with _told_on_stderr():
        resolve_model(config.model_path)  # fetched once, before several actors want it
        if config.resume is None:
            log = RunLog.create(config.output_dir, config.name, task)
        else:
            from selfplay_ray.training.resume import resume  # with MLX (see protocols.py)

            log, history = resume(config, config.resume)
    try:
        _run(arena, config, spec, log, history, live)
    finally:
        if history:
            sys.stdout.write(summary(history) + "\n")
        log.discard_if_nothing_was_played()
    return history


def _run(
    arena: Arena,
    config: RunConfig,
    spec: ClusterSpec | None,
    log: RunLog,
    history: list[StepMetrics],
    live: bool | None,
) -> None:
    """Take the steps, adding each to ``history``."""
    interrupts = Interrupts()
    with interrupts.handled(), ExitStack() as stack:
        stack.enter_context(closing(log))
        display = stack.enter_context(Display(config, log, history=tuple(history), live=live))
        loggers: list[MetricLogger] = [log, display]
        if wandb := wandb_logger(config, log):
            loggers.append(stack.enter_context(closing(wandb)))
        display.note("starting Ray")
        with interrupts.deferred(
            lambda: display.note("ending once Ray has started; Ctrl-C again ends at once")
        ):
            stack.enter_context(ray_cluster())
        display.note("starting the actors and loading the model")
        cluster = stack.enter_context(Cluster(arena, config, log.folder, spec))
        if config.resume is not None:
            log.go_back(history)
        log.write_config(config)  # not before: a run that can't be resumed like this stays as it was
        display.note("playing the first batch" if not history else f"going on after step {history[-1].step}")
        taken = history[-1].step if history else NOTHING_TAKEN
        first = max(taken, 0) + 1
        for metrics in _steps(cluster, config, interrupts, taken):
            history.append(metrics)
            for logger in loggers:
                logger.log_step(metrics)
            if metrics.step == first and config.best_metric:
                _check_best_metric(config.best_metric, history)
        cluster.finish()


def _check_best_metric(name: str, history: Sequence[StepMetrics]) -> None:
    """Tell a person who has mistyped it now, rather than when the best checkpoint isn't there."""
    known = {known for metrics in history for known in metrics.flat()}
    if name not in known:
        logger.warning(
            "no step has a metric named %s, so that none is kept as the best; there are: %s",
            name,
            ", ".join(sorted(known)),
        )


def _steps(cluster: Cluster, config: RunConfig, interrupts: Interrupts, taken: int) -> Iterator[StepMetrics]:
    """The learner's steps after ``taken``, each once, while watching that there is something to wait for. A learner
    that has taken the place of one that was lost takes some of them again.

    Raises:
        ClusterError: one after the other was lost, and none got any further.
    """
    watchdog, lost_before = Watchdog(config.step_timeout), 0
    while taken < config.num_steps:
        try:
            metrics = _wait_for_step(cluster, taken, watchdog, interrupts)
        except (ActorLostError, UnavailableError) as error:  # the latter until it is connected
            losses = cluster.learners_lost - lost_before
            if losses >= TOLERATED_LOSSES:
                raise ClusterError(
                    f"the learner was lost {losses} times without getting further than step {max(0, taken)}: {error}"
                ) from error
            interrupts.check()
            watchdog.look_at(cluster.status())
            time.sleep(STATUS_SECONDS)
            continue
        if metrics is None:
            return
        watchdog = Watchdog(config.step_timeout)
        if metrics.step > taken:
            taken, lost_before = metrics.step, cluster.learners_lost
            yield metrics


def _wait_for_step(
    cluster: Cluster, taken: int, watchdog: Watchdog, interrupts: Interrupts
) -> StepMetrics | None:
    step = cluster.step(taken)
    interrupts.check()
    while not ray.wait([step], timeout=STATUS_SECONDS)[0]:
        interrupts.check()
        watchdog.look_at(cluster.status())
    metrics: StepMetrics | None = get(step)
    return metrics


@contextmanager
def _told_on_stderr() -> Iterator[None]:
    """Show what `selfplay_ray` logs while there is no display yet: a model that is being fetched, say."""
    logger, handler = logging.getLogger("selfplay_ray"), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
