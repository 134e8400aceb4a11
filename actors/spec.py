"""Which class takes which place in the cluster, how many of it, with what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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
"""How often an engine or a judge is replaced: each time it loads the model, and what kills it may come again."""


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """A class and how it is run as a Ray actor.

    ``cls`` meets the protocol of its place (``actors/protocols.py``) and is made with an ActorContext.
    ``num_cpus`` and ``num_gpus`` are what Ray reserves; ``threads`` what BLAS may use. ``max_restarts`` is how
    often Ray replaces a process that died (-1: always); ``max_concurrency`` how many calls run at a time in a
    class with ``async`` methods.
    """

    cls: type
    count: int = 1
    num_cpus: float = 0
    num_gpus: float = 0
    threads: int = 1
    max_restarts: int = 0
    max_concurrency: int | None = None
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
        """Ray's options for it."""
        threads = str(self.threads)
        env = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, **self.env}
        options: dict[str, Any] = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "max_restarts": self.max_restarts,
            "runtime_env": {"env_vars": env},
        }
        if self.max_concurrency is not None:
            options["max_concurrency"] = self.max_concurrency
        return options


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
        return cls(
            arena=ActorSpec(ArenaActor, max_concurrency=many),
            queue=ActorSpec(ReplayQueue),
            learner=ActorSpec(Learner, threads=cpus if config.max_staleness == 0 else threads),
            broadcaster=ActorSpec(WeightBroadcaster),
            worker=ActorSpec(RolloutWorker, config.rollout_workers, max_restarts=-1, max_concurrency=many),
            engine=ActorSpec(
                InferenceEngine, config.engines, threads=threads, max_restarts=RESTARTS, max_concurrency=many
            ),
            endpoint=ActorSpec(EndpointEngine, len(config.endpoints), max_concurrency=many),
            judge=ActorSpec(
                JudgePool, config.judges, threads=threads, max_restarts=RESTARTS, max_concurrency=many
            ),
        )
