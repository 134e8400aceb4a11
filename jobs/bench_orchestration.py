"""What orchestrating adds to a run of episodes that take about a second each, on many rollout workers.

Engines are simulated: an answer comes after the seconds that the prompt asks for. The actors, messages, credit, journal
and log are those of a run; every root asks for children and then speaks itself, and a step is taken as soon as its
batch is played. The baseline is how long the same trees take, at the same pace, when everything but the engines takes
no time: 0.95 times means that orchestrating is 5 % of the run. ``bare_ray`` is the same ratio for nothing but the
messages: what Ray itself costs on this machine. Starting the workers is not measured.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
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
from selfplay_ray.jobs.bare_trees import BareWorker, Seconds, play_bare
from selfplay_ray.jobs.modelless_run import connect_run, learn_nothing, start_workers
from selfplay_ray.rubric import Rubric
from selfplay_ray.runtime import ModelClient
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Completion, EpisodeRequest, ModelCall, Role

WORKERS = 64
GROUP, CHILDREN = 4, 2
GROUPS = 8  # a step
STEPS_AHEAD = 2  # that may be in flight: a tree for each worker
STEPS = 30
SECONDS = (0.5, 1.5)
ANSWER = "word " * 50


class Tree(Episode):
    """Children, if its artifact has seconds for them, and then one call that takes the first of them."""

    rubric = Rubric([lambda rollout, arena: {"Player": rollout.artifact[0]}])

    async def rollout(self, arena: Arena, artifact: Seconds, state: EpisodeState) -> EpisodeState:
        own, *children = artifact
        if children:
            await arena.generate_rollouts([EpisodeRequest("tree", [seconds]) for seconds in children])
        await self.call_model("Player", str(own), arena)
        return state


class TreeArena(Arena):
    """Plays the trees that ``drawn_groups`` draws, one group after the other."""

    def __init__(self) -> None:
        super().__init__(batch_size=GROUPS * GROUP)
        self.add_role(Role("Player"))
        self.add_episode("tree", Tree())
        self._groups = iter(drawn_groups())

    def get_batch(self) -> list[EpisodeRequest]:
        groups = itertools.islice(self._groups, GROUPS)
        return [
            EpisodeRequest("tree", tree, group=str(index))
            for index, group in enumerate(groups)
            for tree in group
        ]


class SimulatedEngine(MockInferenceClient):
    async def complete(self, call: ModelCall) -> Completion:
        await asyncio.sleep(float(call.messages[-1]["content"]))
        return await super().complete(call)


class SimulatedWorker(BareWorker, RolloutWorker):
    """A rollout worker that asks a simulated engine of its own."""

    def make_client(self, peers: Peers) -> ModelClient:
        return SimulatedEngine(lambda messages: ANSWER)


def run(repeats: int) -> BenchmarkResult:
    config = RunConfig(
        batch_size=GROUPS * GROUP, num_steps=STEPS, max_staleness=STEPS_AHEAD - 1, rollout_workers=WORKERS
    )
    with ray_cluster(), tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        workers = start_workers(SimulatedWorker, config, TreeArena(), Path(folder))
        get([worker.connected.remote() for worker in workers.values()])
        starting = time.perf_counter() - started
        seconds = []
        for repeat in range(repeats):
            place = Path(folder) / str(repeat)
            place.mkdir()
            seconds.append(_play(workers, config, place))
        bare = play_bare(list(workers.values()), drawn_groups(), STEPS_AHEAD * GROUPS, GROUPS)
    ideal = ideal_seconds([max(map(tree_seconds, group)) for group in drawn_groups()])
    return BenchmarkResult.of_costs(
        "orchestration",
        [(measured, ideal) for measured in seconds],
        "s",
        workers=WORKERS,
        episodes=STEPS * GROUPS * GROUP * (1 + CHILDREN),
        starting_seconds=starting,
        bare_ray=ideal / bare,
    )


def drawn_groups() -> list[list[Seconds]]:
    """The groups of a run, the same each time."""
    rng = random.Random(0)  # noqa: S311 - for sampling, not for secrets
    return [
        [[rng.uniform(*SECONDS) for _ in range(1 + CHILDREN)] for _ in range(GROUP)]
        for _ in range(STEPS * GROUPS)
    ]


def tree_seconds(tree: Seconds) -> float:
    """How long the engines take for a tree: its children are played at the same time, then the root speaks."""
    own, *children = tree
    return own + max(children)


def ideal_seconds(groups: Sequence[float]) -> float:
    """How long groups of so many seconds take when whatever else there is takes no time: as many as may be in flight
    begin at once, and when a step's worth of them has ended, the next step's begin."""
    begun = STEPS_AHEAD * GROUPS
    ends, waiting, now = list(groups[:begun]), iter(groups[begun:]), 0.0
    heapq.heapify(ends)
    for ended in range(1, len(groups) + 1):
        now = heapq.heappop(ends)
        if ended % GROUPS == 0:
            for seconds in itertools.islice(waiting, GROUPS):
                heapq.heappush(ends, now + seconds)
    return now


def _play(workers: dict[str, Handle], config: RunConfig, folder: Path) -> float:
    """Seconds from the first order to the last acknowledgement."""
    peers = connect_run(workers, config, TreeArena(), folder)
    started = time.perf_counter()
    get(peers.arena.start.remote())
    for version in range(1, STEPS + 1):
        learn_nothing(peers, config.batch_size, version)
    seconds = time.perf_counter() - started
    for actor in (peers.arena, peers.queue, peers.broadcaster):
        ray.kill(actor)
    return seconds
