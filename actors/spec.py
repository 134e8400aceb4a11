"""Which class takes which place in the cluster, how many of it, with what."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from selfplay_ray.actors.arena import ArenaActor
from selfplay_ray.actors.endpoint_engine import EndpointEngine
from selfplay_ray.actors.inference_engine import InferenceEngine
from selfplay_ray.actors.judge_pool import JudgePool
from selfplay_ray.actors.learner import Learner
from selfplay_ray.actors.replay_queue import ReplayQueue
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.actors.weight_broadcaster import WeightBroadcaster
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError

RESTARTS = 100
"""How often an actor is replaced, and a call made again that was lost with one: what kills it may come again."""


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """A class and how it is run as a Ray actor.

    ``cls`` meets the protocol of its place (``actors/protocols.py``) and is made with an ActorContext.
    ``num_cpus`` and ``num_gpus`` are what Ray reserves; ``threads`` what BLAS may use, None what Ray gives it: as many
    as CPUs are reserved, and one at least, unless the cluster's environment names a number. ``max_restarts`` is how
    often Ray replaces a process that died (-1: always), and ``max_task_retries`` how often it makes a call again that
    was lost, if it may be made twice; ``max_concurrency`` how many calls run at a time in a class with ``async``
    methods. ``beside_driver`` is for who needs the run's folder: on the driver's machine, wherever the others are.
    """

    cls: type
    count: int = 1
    num_cpus: float = 0
    num_gpus: float = 0
    threads: int | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int | None = None
    beside_driver: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.cls, type):
            raise ConfigError(f"ActorSpec.cls is {self.cls!r}; give a class, not an instance or a name")
        if not hasattr(self.cls, "connect"):
            raise ConfigError(
                f"{self.cls.__name__} has no method connect(peers); see selfplay_ray/actors/protocols.py for what "
                "the cluster asks of an actor"
            )
        if self.count < 0:
            raise ConfigError(f"ActorSpec of {self.cls.__name__} has count {self.count}; give 0 or more")

    def options(self) -> dict[str, Any]:
        """Ray's options for it, but where it runs."""
        options: dict[str, Any] = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "max_restarts": self.max_restarts,
            "max_task_retries": self.max_task_retries,
        }
        # Only where it has to be: Ray starts Python twice for a process with an environment of its own.
        if env := {**self._threads_env(), **self.env}:
            options["runtime_env"] = {"env_vars": env}
        if groups := _concurrency_groups(self.cls):
            options["concurrency_groups"] = groups
        if self.max_concurrency is not None:
            options["max_concurrency"] = self.max_concurrency
        return options

    def _threads_env(self) -> dict[str, str]:
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
        return {} if self.threads is None else dict.fromkeys(names, str(self.threads))


def _concurrency_groups(cls: type) -> dict[str, int]:
    """Those that methods of ``cls`` are in (``ray.method(concurrency_group=…)``), a thread for each."""
    methods = (method for _, method in inspect.getmembers(cls, inspect.isfunction))
    groups = (getattr(method, "__ray_concurrency_group__", None) for method in methods)
    return {group: 1 for group in groups if group is not None}


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """One spec for each place. ``dataclasses.replace`` one of them to put a class of your own there."""

    arena: ActorSpec
    queue: ActorSpec
    learner: ActorSpec
    broadcaster: ActorSpec
    worker: ActorSpec
    engine: ActorSpec
    endpoint: ActorSpec
    judge: ActorSpec

    def __post_init__(self) -> None:
        for place in ("arena", "queue", "learner", "broadcaster"):
            count = getattr(self, place).count
            if count != 1:
                raise ConfigError(f"a cluster has exactly one {place}; its ActorSpec asks for {count}")
        if self.worker.count < 1:
            raise ConfigError("a cluster needs at least one worker; its ActorSpec asks for 0")
        if self.engine.count + self.endpoint.count < 1:
            raise ConfigError("a cluster needs at least one engine or endpoint; its ActorSpecs ask for 0")

    @classmethod
    def from_config(cls, config: RunConfig) -> ClusterSpec:
        """Our own classes, as many as ``config`` says, sharing this machine's CPUs.

        Learner and engines get CPUs of their own, because two BLAS processes on the same ones stand in each
        other's way; with ``max_staleness`` 0 they take turns, so each may have all.
        """
        cpus = os.cpu_count() or 1
        busy_at_once = config.engines + config.judges + (config.max_staleness > 0)
        threads = max(1, cpus // max(1, busy_at_once))
        many = 10_000  # calls that only wait cost next to nothing
        core = partial(ActorSpec, max_restarts=RESTARTS, max_task_retries=RESTARTS, beside_driver=True)
        return cls(
            arena=core(ArenaActor, max_concurrency=many),
            queue=core(ReplayQueue),
            learner=ActorSpec(
                Learner,
                threads=cpus if config.max_staleness == 0 else threads,
                max_restarts=RESTARTS,
                beside_driver=True,
            ),
            broadcaster=core(WeightBroadcaster),
            worker=ActorSpec(RolloutWorker, config.rollout_workers, max_restarts=-1, max_concurrency=many),
            engine=ActorSpec(
                InferenceEngine, config.engines, threads=threads, max_restarts=RESTARTS, max_concurrency=many
            ),
            endpoint=ActorSpec(EndpointEngine, len(config.endpoints), max_concurrency=many),
            judge=ActorSpec(
                JudgePool, config.judges, threads=threads, max_restarts=RESTARTS, max_concurrency=many
            ),
        )
