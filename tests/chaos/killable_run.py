"""A run that is killed with ``kill -9`` at points of its steps: ``killable_run.py FOLDER MODEL WHO POINT=STEP …``.

WHO is ``all``: everything dies at once, as when a machine goes down, the driver, Ray and all actors; or ``one``: the
process that is at the point, each time it is reached first. Without a point it runs on.
"""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import spoken
from length import LONG
from processes import end, family
from ray import cloudpickle
from ray.exceptions import RayActorError

from selfplay_ray import Arena, Artifact, EpisodeRequest, RAECredit, Role
from selfplay_ray.actors.arena import ArenaActor
from selfplay_ray.actors.inference_engine import InferenceEngine
from selfplay_ray.actors.judge_pool import JudgePool
from selfplay_ray.actors.learner import Learner
from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.actors.replay_queue import ReplayQueue
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.actors.run import train
from selfplay_ray.actors.spec import ClusterSpec
from selfplay_ray.actors.weight_broadcaster import WeightBroadcaster
from selfplay_ray.config import RunConfig
from selfplay_ray.evaluation import Evaluation
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.replay import Lease
from selfplay_ray.runtime import ModelClient
from selfplay_ray.scheduling.coordinator import CreditedGroup
from selfplay_ray.types import Completion, GenerateResult, ModelCall, RolloutGroup

POINTS = (
    "in a model call",
    "in an engine",
    "in a judge",
    "before a group is put",
    "after a group is put",
    "after the lease",
    "in the optimizer",
    "before the acknowledgement",
    "after the acknowledgement",
    "in publishing",
    "in an evaluation",
    "in a checkpoint",
    "after a checkpoint",
)

NUM_STEPS, CHECKPOINT_EVERY, EVAL_EVERY = 12 if LONG else 6, 2, 4


def die_at(point: str, version: int) -> None:
    """Die, if this is where to."""
    plan = json.loads(os.environ["KILL_PLAN"])
    if plan["points"].get(point) != version:
        return
    if plan["who"] == "one":
        with contextlib.suppress(FileExistsError):
            Path(plan["deaths"], point).touch(exist_ok=False)
            end(os.getpid())
        return
    driver = plan["driver"]
    doomed = family(driver)
    for pid in (driver, *(doomed - {driver, os.getpid()}), os.getpid()):
        end(pid)


class LearningArena(Arena):
    """What it plays depends on what came of it before: artifacts are drawn from a store that rewards change."""

    def __init__(self) -> None:
        super().__init__(credit_assigner=RAECredit(decay=0.9))
        self.add_role(Role("Speaker", max_tokens=6))
        self.add_episode("speak", spoken.Speak())
        store = self.add_store("topics")
        for topic in range(3):
            store.add(Artifact(str(topic), topic))

    def get_batch(self) -> Sequence[EpisodeRequest]:
        drawn = self.stores["topics"].sample(self.batch_size, weighted=True)
        return [
            EpisodeRequest("speak", artifact.data, group=str(index % 2))
            for index, artifact in enumerate(drawn)
        ]

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        for result in results:
            topic = result.rollout.artifact
            weight = 1 + result.rollout.rewards["Speaker"]
            self.stores["topics"].add(Artifact(str(topic), topic, weight))


class DyingClient:
    """Dies instead of asking the model."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client

    async def complete(self, call: ModelCall) -> Completion:
        die_at("in a model call", self.get_policy_version() + 1)
        return await self._client.complete(call)

    def get_policy_version(self) -> int:
        return self._client.get_policy_version()


class DyingEngine(InferenceEngine):
    async def generate(self, request: GenerationRequest) -> Generation:
        generation = await super().generate(request)
        die_at("in an engine", generation.spans[-1].version + 1)
        return generation


class DyingJudge(JudgePool):
    """At the N-th call: it knows no versions."""

    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self._calls = 0

    async def complete(self, call: ModelCall) -> Completion:
        self._calls += 1
        die_at("in a judge", self._calls)
        return await super().complete(call)


class DyingWorker(RolloutWorker):
    def make_client(self, peers: Peers) -> ModelClient:
        return DyingClient(super().make_client(peers))


class DyingArena(ArenaActor):
    async def _put(self, credited: Sequence[CreditedGroup]) -> None:
        die_at("before a group is put", credited[0].batch + 1)
        await super()._put(credited)

    def _keep(self, evaluation: Evaluation) -> None:
        super()._keep(evaluation)
        die_at("in an evaluation", evaluation.version)


class DyingQueue(ReplayQueue):
    async def put(self, groups: Sequence[RolloutGroup], state: bytes | None = None) -> int:
        put = await super().put(groups, state)
        die_at("after a group is put", int(groups[-1].id.split("/")[0].removeprefix("batch-")) + 1)
        return put

    async def ack(self, lease_id: str, version: int) -> None:
        die_at("before the acknowledgement", version)
        await super().ack(lease_id, version)
        die_at("after the acknowledgement", version)

    async def forget(self, version: int) -> None:
        # The oldest of the two that are kept: the newest is the one just written.
        die_at("after a checkpoint", version + CHECKPOINT_EVERY)
        await super().forget(version)


class DyingBroadcaster(WeightBroadcaster):
    async def publish(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        await self._connected.wait()
        with contextlib.suppress(RayActorError):
            await self._peers.engines[0].load_adapter.remote(weights, version)
        die_at("in publishing", version)
        await super().publish(weights, version)


class DyingLearner(Learner):
    def __init__(self, context: ActorContext) -> None:
        from selfplay_ray.training import checkpoint  # not in the processes of all who have a handle

        super().__init__(context)
        put_in_place = checkpoint._put_in_place

        def dying(unfinished: Path, folder: Path) -> None:
            die_at("in a checkpoint", self._trainer.version)
            put_in_place(unfinished, folder)

        checkpoint._put_in_place = dying

    def connect(self, peers: Peers) -> None:
        super().connect(peers)
        optimizer = self._trainer.optimizer
        apply_gradients = optimizer.apply_gradients

        def dying(*arguments: object) -> object:
            updated = apply_gradients(*arguments)
            die_at("in the optimizer", self._trainer.version + 1)
            return updated

        optimizer.apply_gradients = dying

    def _next_lease(self) -> Lease | None:
        lease = super()._next_lease()
        die_at("after the lease", self._trainer.version + 1)
        return lease


def configuration(folder: Path, model: Path) -> RunConfig:
    return RunConfig(
        name=folder.name,
        output_dir=folder.parent,
        resume=folder if folder.exists() else None,
        model_path=str(model),
        num_steps=NUM_STEPS,
        batch_size=4,
        max_staleness=0,
        max_tokens=6,
        lora_rank=2,
        lr=1e-2,
        checkpoint_every=CHECKPOINT_EVERY,
        eval_every=EVAL_EVERY,
        eval_episodes=2,
        keep_checkpoints=2,
        judges=1,
        step_timeout=60,
    )


def main() -> None:
    folder, model, who, *points = sys.argv[1:]
    deaths = Path(f"{folder}-deaths")
    deaths.mkdir(exist_ok=True)
    plan = {
        "who": who,
        "points": {point: int(step) for point, _, step in (one.partition("=") for one in points)},
        "driver": os.getpid(),
        "deaths": str(deaths),
    }
    os.environ["KILL_PLAN"] = json.dumps(plan)  # the cluster is this process's own, and so are the actors
    environment = {"RAY_testing_rpc_failure": os.environ["LOSSY"]} if "LOSSY" in os.environ else {}
    config = configuration(Path(folder), Path(model))
    spec = ClusterSpec.from_config(config)
    places = {
        "arena": DyingArena,
        "queue": DyingQueue,
        "learner": DyingLearner,
        "broadcaster": DyingBroadcaster,
        "worker": DyingWorker,
        "engine": DyingEngine,
        "judge": DyingJudge,
    }
    dying = {place: replace(getattr(spec, place), cls=cls, env=environment) for place, cls in places.items()}
    train(LearningArena(), config, "speak", replace(spec, **dying))


if __name__ == "__main__":
    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    cloudpickle.register_pickle_by_value(sys.modules["processes"])
    cloudpickle.register_pickle_by_value(sys.modules["length"])
    cloudpickle.register_pickle_by_value(spoken)
    main()
