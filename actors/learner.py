"""The learner: leases what was played, takes a step, publishes the new weights."""

from __future__ import annotations

import contextlib
import time
import uuid
from dataclasses import replace

import ray
from ray.exceptions import RayActorError

from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Peers
from selfplay_ray.actors.supervision import PULSE
from selfplay_ray.errors import TrainingError, UnavailableError
from selfplay_ray.inference.requests import EngineStats
from selfplay_ray.models import resolve_model
from selfplay_ray.replay import Lease, fresh_records
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.json_lines import os_errors
from selfplay_ray.runlog.metrics import StepMetrics, before_training, step_metrics
from selfplay_ray.scheduling.patience import Stopwatch
from selfplay_ray.training.active_sampling import trainable, why_nothing
from selfplay_ray.training.checkpoint_folder import (
    METRICS,
    checkpoint_path,
    checkpoint_versions,
    load_newest,
    prune,
)

POLL_SECONDS = 0.1
WAIT_SECONDS = 0.5
"""How long the queue waits for groups before the learner looks whether the arena is done."""
STEPS_KNOWN = 5
"""How many steps it takes to know how long one may take."""


class Learner:
    """Ray's side of a :class:`~selfplay_ray.training.trainer.Trainer`, which wants all calls in one thread: an
    actor without ``async`` methods has but one.

    A step's groups are acknowledged before its weights are published, and forgotten when a checkpoint holds what
    was learned from them. So a learner that goes on from a checkpoint trains on what was trained on since, in the
    same order, and on nothing twice. One that takes the place of a learner that was lost does so while the others go
    on: the engines keep the weights that it comes to again.
    """

    def __init__(self, context: ActorContext) -> None:
        self._config = context.config
        self._log = RunLog(context.run_folder)
        self._training = Stopwatch(STEPS_KNOWN, context.config.hang_timeout)
        self._connected = False

    def connect(self, peers: Peers) -> None:
        from selfplay_ray.training.trainer import Trainer, TrainerSettings

        config = self._config
        self._peers = peers
        with os_errors(self._log.adapters_dir):
            self._log.adapters_dir.mkdir(exist_ok=True)
        settings = TrainerSettings.from_config(config)
        if checkpoint_versions(self._log.checkpoints_dir):
            settings = replace(settings, adapter=None)  # that it began with, and need not be there any more
        self._lora = settings.lora
        self._trainer = Trainer(resolve_model(config.model_path), settings)
        kept = load_newest(self._log.checkpoints_dir, self._trainer.load) or {}
        self._roots: int = kept.get("roots", 0)  # that were trained on
        # version -> batches that were played beside its own, because there was too little to train on
        self._extra = {int(version): batches for version, batches in kept.get("extra_batches", {}).items()}
        self._generated = Meter()
        self._begins = self._trainer.version == 0
        self._last: StepMetrics | None = None
        ray.get(peers.queue.rewind.remote(self._trainer.version))
        status: ArenaStatus = ray.get(peers.arena.status.remote())
        # The version that engines have from a learner before this one; if nobody knows of any, ours.
        self._published = max(status.version, ray.get(peers.broadcaster.version.remote()) or 0)
        self._publish()
        self._connected = True

    @ray.method(concurrency_group=PULSE)
    def connected(self) -> bool:
        """Raises TimeoutError where a step hangs: it takes far longer than those before it."""
        if self._training.overdue:
            raise TimeoutError
        return self._connected

    def step(self, taken: int) -> StepMetrics | None:
        """The step after ``taken``, the last that is known; asked again, because the answer was lost, it is the same.

        Waits for a batch, trains on it, acknowledges, publishes, evaluates if it is time to. None when nothing is left
        to train on. Where there are evaluations, the first is step 0: an evaluation, and nothing else. One that goes on
        from a checkpoint before ``taken`` comes to steps that are known of already.

        Raises:
            TrainingError: also several batches had nothing to train on; says why.
            UnavailableError: it has taken the place of one that was lost, and isn't connected yet.
        """
        if not self._connected:
            raise UnavailableError("the learner has not loaded its checkpoint yet")
        if self._last is None or self._last.step <= taken:
            self._last = self._take_step()
        return self._last

    def _take_step(self) -> StepMetrics | None:
        if self._begins and self._config.eval_every and not self._taken_again:
            self._begins = False
            return self._evaluated(before_training(time.time()))
        started = time.monotonic()
        lease = self._next_lease()
        if lease is None:
            return None
        waited, extra = time.monotonic() - started, self._extra.get(self._trainer.version, 0)
        self._roots += sum(group.roots for group in lease.groups)
        records, stale = fresh_records(lease.groups, self._trainer.version, self._config.max_staleness)
        with self._training.running():
            trained = self._trainer.train_step(records)
        version = self._trainer.version
        ray.get(self._peers.queue.ack.remote(lease.id, version))
        self._publish()
        tokens_per_second, swap_seconds = self._generated.read(self._engine_stats())
        metrics = step_metrics(
            step=version,
            version=version,
            time=time.time(),
            groups=lease.groups,
            records=records,
            dropped_stale=stale,
            train={**trained.flat(), "extra_batches": extra},
            tokens_per_second=tokens_per_second,
            learner_wait_seconds=waited,
            engine_wait_seconds=swap_seconds,
        )
        if self._is_time_to_evaluate():
            metrics = self._evaluated(metrics)
        self._keep(metrics)
        return metrics

    def _next_lease(self) -> Lease | None:
        """The next batch, and as many more as it takes to have enough to train on; None when nothing is left."""
        version, extra = self._trainer.version, 0
        while lease := self._wait_for_lease():
            records, stale = fresh_records(lease.groups, version, self._config.max_staleness)
            enough = trainable(records, every=self._trainer.objective.needs_every_record)
            if enough >= self._config.min_trainable or (enough and extra == self._config.max_extra_batches):
                return lease
            if extra == self._config.max_extra_batches:
                raise TrainingError(
                    f"step {version + 1}: {why_nothing(lease.groups, records, stale)}. Grade the reward more finely, "
                    "or let more be played for a step (max_extra_batches)"
                )
            extra += 1
            self._extra[version] = extra
            ray.get(self._peers.queue.release.remote(lease.id))  # it comes again, with the next one
        return None

    def _wait_for_lease(self) -> Lease | None:
        """The next batch; when the arena is done, whatever is left; None when that is nothing.

        Groups are leased whole. What a step leases beyond its batch the next one asks less, so that a run of
        groups of any size takes as many steps as it plays batches.
        """
        batches = self._trainer.version + 1 + sum(self._extra.values())
        wanted, lease_id = batches * self._config.batch_size - self._roots, uuid.uuid4().hex
        peers = self._peers
        while True:
            # What was put before the arena was done is there; so it is asked first.
            done: bool = ray.get(peers.arena.play_beside.remote(self._extra))
            wait = 0.0 if done else WAIT_SECONDS
            lease: Lease | None = ray.get(
                peers.queue.lease.remote(wanted, or_fewer=done, lease_id=lease_id, wait=wait)
            )
            if lease is not None or done:
                return lease
            self._publish_what_was_lost()

    def _publish_what_was_lost(self) -> None:
        """While one waits: engines need their weights for whatever is waited for."""
        if ray.get(self._peers.broadcaster.version.remote()) is None:
            self._publish()

    def _publish(self) -> None:
        if self._taken_again:
            return
        from selfplay_ray.lora import save_adapter

        weights, version = self._trainer.adapter(), self._trainer.version
        self._published = version
        if (
            self._lora.rank and version
        ):  # a whole model at every step would fill the disk: checkpoints hold them
            save_adapter(self._log.adapter_path(version), weights, self._lora, version)
        ray.get(self._peers.broadcaster.publish.remote(weights, version))

    @property
    def _taken_again(self) -> bool:
        """Whether this version was published, and evaluated if it was time to, by a learner that was lost; engines have
        a later one, which this one comes to."""
        return self._trainer.version < self._published

    def _is_time_to_evaluate(self) -> bool:
        version, every = self._trainer.version, self._config.eval_every
        if not every or self._taken_again:
            return False
        return version % every == 0 or version == self._config.num_steps

    def _evaluated(self, metrics: StepMetrics) -> StepMetrics:
        """``metrics``, and how the policy that was just published fares. It stays as it is while that is played."""
        started = time.monotonic()
        while True:
            numbers: dict[str, float] | None = ray.get(
                self._peers.arena.evaluation.remote(self._trainer.version)
            )
            if numbers is not None:
                seconds = {"time/evaluation": time.monotonic() - started}
                return replace(metrics, values={**metrics.values, **numbers, **seconds})
            self._publish_what_was_lost()
            time.sleep(POLL_SECONDS)

    def _keep(self, metrics: StepMetrics) -> None:
        """A checkpoint, where one is due, in place of those that are no longer wanted."""
        version, folder = self._trainer.version, self._log.checkpoints_dir
        if version % self._config.checkpoint_every and version != self._config.num_steps:
            return
        kept = {"roots": self._roots, "extra_batches": self._extra, METRICS: metrics.as_json()}
        self._trainer.save(checkpoint_path(folder, version), kept)
        oldest = prune(folder, version, self._config.keep_checkpoints, self._config.best_metric)
        ray.get(self._peers.queue.forget.remote(oldest))

    def _engine_stats(self) -> list[EngineStats]:
        """Of those that are there."""
        stats = []
        for asked in [engine.stats.remote() for engine in self._peers.engines]:
            with contextlib.suppress(RayActorError):
                stats.append(ray.get(asked))
        return stats


class Meter:
    """Generated tokens per second, and seconds spent swapping weights, since it was last read. An engine that was
    lost takes what it had counted with it: at least 0."""

    def __init__(self) -> None:
        self._time = time.monotonic()
        self._tokens = 0
        self._swapping = 0.0

    def read(self, engines: list[EngineStats]) -> tuple[float, float]:
        now = time.monotonic()
        tokens = sum(engine.generated_tokens for engine in engines)
        swapping = sum(engine.swap_seconds for engine in engines)
        rate = max(0, tokens - self._tokens) / (now - self._time)
        swapped = max(0.0, swapping - self._swapping)
        self._time, self._tokens, self._swapping = now, tokens, swapping
        return rate, swapped
