"""How many episodes a second go through the arena and its workers, when an episode itself does nothing.

Two levels deep: every root spawns children and awaits them. The same actors, messages, credit, journal and log
as in a run; no model is called. The baseline is the same number of results of the same size sent by as many bare
actors, in batches of the same size.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import ray

from selfplay_ray.actors.cluster import ray_cluster
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import Handle, Peers
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.arena import Arena
from selfplay_ray.benchmarks.result import BenchmarkResult
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.jobs.modelless_run import connect_run, learn_nothing, start_workers
from selfplay_ray.runtime import ModelClient
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout

WORKERS = 1
ROOTS, CHILDREN, BATCHES = 128, 7, 8
EPISODES = ROOTS * (1 + CHILDREN)  # a batch


class NoopEpisode(Episode):
    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        await arena.generate_rollouts([EpisodeRequest("noop", artifact - 1)] * (CHILDREN if artifact else 0))
        return state


class NoopArena(Arena):
    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("noop", 1)] * self.batch_size


class ModellessWorker(RolloutWorker):
    """A rollout worker whose episodes call no model, so that none is loaded."""

    def make_client(self, peers: Peers) -> ModelClient:
        return MockInferenceClient(lambda messages: "")


class BareActor:
    """Returns what a worker would: a list of results."""

    def run(self, requests: list[EpisodeRequest]) -> list[GenerateResult]:
        return [
            GenerateResult(Rollout(request.id, request.episode_type, request.artifact))
            for request in requests
        ]


def run(repeats: int) -> BenchmarkResult:
    with ray_cluster(), tempfile.TemporaryDirectory() as folder:
        peers = _start(Path(folder), BATCHES * (repeats + 1))
        bare: list[Handle] = [ray.remote(BareActor).options(num_cpus=0).remote() for _ in range(WORKERS)]
        _through_bare_actors(bare)
        _through_arena(peers, 0)  # the first is for warming up
        ours, theirs = [], []
        for repeat in range(1, repeats + 1):
            theirs.append(_through_bare_actors(bare))
            ours.append(_through_arena(peers, repeat * BATCHES))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return BenchmarkResult(
        name="noop_episodes",
        ratio=statistics.median(ratios),
        value=statistics.median(ours),
        baseline=statistics.median(theirs),
        unit="episodes/s",
        spread=(max(ratios) - min(ratios)) / statistics.median(ratios),
        detail={"workers": WORKERS, "roots": ROOTS, "children": CHILDREN, "batches": BATCHES},
    )


def _start(folder: Path, steps: int) -> Peers:
    config = RunConfig(batch_size=ROOTS, num_steps=steps, max_staleness=1, rollout_workers=WORKERS)
    arena = NoopArena(batch_size=ROOTS)
    arena.add_episode("noop", NoopEpisode())
    workers = start_workers(ModellessWorker, config, arena, folder)
    peers = connect_run(workers, config, arena, folder)
    get(peers.arena.start.remote())
    return peers


def _through_arena(peers: Peers, version: int) -> float:
    """Episodes a second over the next batches, trained on at once."""
    started = time.perf_counter()
    for batch in range(BATCHES):
        learn_nothing(peers, ROOTS, version + batch + 1)
    return BATCHES * EPISODES / (time.perf_counter() - started)


def _through_bare_actors(actors: list[Handle]) -> float:
    """Episodes a second, with the two levels of a batch one after the other, as they must be."""
    started = time.perf_counter()
    for _ in range(BATCHES):
        for count in (ROOTS, ROOTS * CHILDREN):
            requests = [
                EpisodeRequest("noop", 0, id=f"b000000.{index}/0/0") for index in range(count // len(actors))
            ]
            get([actor.run.remote(requests) for actor in actors])
    return BATCHES * EPISODES / (time.perf_counter() - started)
