"""Small arenas to train on a real cluster, and light classes for the places a test doesn't look at."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import ray

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.inference.requests import EngineStats
from selfplay_ray.replay import fresh_records
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.metrics import StepMetrics, step_metrics
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import Completion, EpisodeRequest, ModelCall, PolicySpan, Role, Rollout


def variety(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Something that differs from sample to sample, whatever a random model says."""
    return {step.role_id: sum(step.completion_token_ids) % 11 / 10 for step in rollout.steps}


class Speak(Episode):
    """One role says something. With a number above 0 as its artifact it first asks for two children of one less."""

    rubric = Rubric([variety])

    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        if artifact:
            state.child_results = await arena.generate_rollouts([EpisodeRequest("speak", artifact - 1)] * 2)
        await self.call_model("Speaker", f"Say something about {artifact}.", arena)
        return state


class SpeakArena(Arena):
    """Plays one artifact after the other, ``batch_size`` of them in a batch."""

    def __init__(self, episode: Episode | None = None, artifacts: Sequence[object] = (0,)) -> None:
        super().__init__()
        self.artifacts = artifacts
        self.add_role(Role("Speaker", max_tokens=6))
        self.add_episode("speak", episode or Speak())

    def get_batch(self) -> Sequence[EpisodeRequest]:
        first, count = self._batches * self.batch_size, len(self.artifacts)
        return [
            EpisodeRequest("speak", self.artifacts[(first + index) % count])
            for index in range(self.batch_size)
        ]


# Classes for places in a cluster: no model, real messages.


class SeedTeller(ModelClient):
    """Answers every call with its seed."""

    async def complete(self, call: ModelCall) -> Completion:
        return Completion(f"{call.seed}", (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")

    def get_policy_version(self) -> int:
        return 0


class SeedWorker(RolloutWorker):
    """A rollout worker whose roles say the seeds of their calls."""

    def make_client(self, peers: Peers) -> ModelClient:
        return SeedTeller()

    async def pid(self) -> int:
        return os.getpid()


class WeightlessEngine:
    def __init__(self, context: ActorContext) -> None:
        pass

    async def connect(self, peers: Peers) -> None:
        pass

    async def connected(self) -> bool:
        return True

    async def load_adapter(self, weights: object, version: int) -> None:
        pass

    async def stats(self) -> EngineStats:
        return EngineStats()


class IdleLearner:
    """Leases and acknowledges as the learner does, and learns nothing."""

    def __init__(self, context: ActorContext) -> None:
        self.config = context.config
        self.version = 0

    def connect(self, peers: Peers) -> None:
        self.peers = peers

    def step(self, taken: int) -> StepMetrics | None:
        done = False
        while (lease := ray.get(self.peers.queue.lease.remote(self.config.batch_size))) is None:
            if done:
                return None
            # What has come by then is looked for once more.
            done = ray.get(self.peers.arena.status.remote()).done
            time.sleep(0.02)
        records, stale = fresh_records(lease.groups, self.version, 1_000_000)
        self.version += 1
        ray.get(self.peers.broadcaster.publish.remote({}, self.version))
        ray.get(self.peers.queue.ack.remote(lease.id, self.version))
        return step_metrics(
            step=self.version,
            version=self.version,
            time=time.time(),
            groups=lease.groups,
            records=records,
            dropped_stale=stale,
            train={},
            tokens_per_second=0.0,
            learner_wait_seconds=0.0,
            engine_wait_seconds=0.0,
        )


def modelless(config: RunConfig, **places: ActorSpec) -> ClusterSpec:
    """The usual cluster, without any model in it."""
    spec = ClusterSpec.from_config(config)
    light = {
        "learner": ActorSpec(IdleLearner),
        "engine": ActorSpec(WeightlessEngine, max_concurrency=10),
        "worker": replace(spec.worker, cls=SeedWorker),
    }
    return replace(spec, **{**light, **places})
