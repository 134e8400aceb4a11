"""Many episodes at high speed: no process grows, and when the run is over nothing of it is left.

The long form plays what a usual run plays in hours, and prints how each process fared.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import accounts
import grpc
import pytest
import ray
import spoken
from length import LONG
from processes import actors
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

from selfplay_ray.actors.run import train
from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.rollouts import read_rollouts

pytestmark = pytest.mark.usefixtures("ray_cluster")

TREE = 1 + spoken.CHILDREN
NUM_STEPS, BATCH = (70, 96) if LONG else (8, 16)
EPISODES = NUM_STEPS * BATCH * TREE
GROWTH = 1.05
"""As many times what it had at half time may a process have in the end."""
QUIET_SECONDS, CLEANING_SECONDS = 3.0, 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds: resident bytes, open files, references to Ray's objects."""

    resident: int
    files: int
    references: int


@dataclass(frozen=True, slots=True)
class Look:
    """All processes of the run after so many ``steps``, by name and process id."""

    steps: int
    processes: dict[tuple[str, int], Sample]


class Raylet:
    """What Ray knows of the objects on this machine. ``ray.util.state`` would tell as well, but asks the dashboard."""

    def __init__(self) -> None:
        (node,) = ray.nodes()
        self._channel = grpc.insecure_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
        self._stub = node_manager_pb2_grpc.NodeManagerServiceStub(self._channel)

    def references(self) -> dict[int, int]:
        """How many objects each process has a reference to."""
        return {worker.pid: worker.num_object_refs_in_scope for worker in self._stats().core_workers_stats}

    def stored(self) -> int:
        """How many objects are in the object store."""
        return int(self._stats().store_stats.num_local_objects)

    def close(self) -> None:
        self._channel.close()

    def _stats(self) -> node_manager_pb2.GetNodeStatsReply:
        request = node_manager_pb2.GetNodeStatsRequest(include_memory_info=True)
        return self._stub.GetNodeStats(request, timeout=30)


@pytest.fixture
def raylet() -> Iterator[Raylet]:
    with closing(Raylet()) as raylet:
        yield raylet


@dataclass
class Watch:
    """Looks at all actors and the driver, after every so many steps."""

    log: RunLog
    raylet: Raylet
    looks: list[Look] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        while not self.over.wait(0.2):
            steps = accounts.steps_taken(self.log)
            if steps > (self.looks[-1].steps if self.looks else 0):
                self.looks.append(Look(steps, self._processes()))

    def _processes(self) -> dict[tuple[str, int], Sample]:
        """Those that are alive: at a run's end they go while one looks."""
        references = self.raylet.references()
        seen = {}
        for pid, name in {**actors(), os.getpid(): "driver"}.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                seen[name, pid] = Sample(resident(pid), open_files(pid), references.get(pid, 0))
        return seen

    def about(self, share: float) -> Look:
        """The middle one of those after about ``share`` of the steps, each number the median of theirs."""
        near = [look for look in self.looks if abs(look.steps / NUM_STEPS - share) <= 0.05]
        names = set.intersection(*(set(look.processes) for look in near))
        middle = {name: median([look.processes[name] for look in near]) for name in names}
        return Look(near[len(near) // 2].steps, middle)


def median(samples: Sequence[Sample]) -> Sample:
    return Sample(
        *(
            statistics.median_high(getattr(sample, name) for sample in samples)
            for name in ("resident", "files", "references")
        )
    )


def resident(pid: int) -> int:
    """Bytes. ``ProcessLookupError`` for a process that has ended, also when nobody has waited for it yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    _, found, rest = status.partition("VmRSS:")
    if not found:
        raise ProcessLookupError(pid)
    return 1024 * int(rest.split()[0])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass(frozen=True, slots=True)
class LeftOver:
    """Of runs that are over: actors' processes, files that this one has open, objects in the store."""

    actors: tuple[str, ...]
    files: int
    objects: int

    @classmethod
    def found(cls, raylet: Raylet) -> LeftOver:
        gc.collect()
        return cls(tuple(actors().values()), open_files(os.getpid()), raylet.stored())


def left_over(raylet: Raylet) -> LeftOver:
    """What is left when nothing has gone for a while: Ray cleans up, and closes connections, in the background."""
    left, since, deadline = LeftOver.found(raylet), time.monotonic(), time.monotonic() + CLEANING_SECONDS
    while time.monotonic() < min(since + QUIET_SECONDS, deadline):
        time.sleep(0.2)
        if (now := LeftOver.found(raylet)) != left:
            left, since = now, time.monotonic()
    return left


def play(config: RunConfig, raylet: Raylet) -> Watch:
    """Train, and tell what was seen meanwhile."""
    watch = Watch(RunLog(config.output_dir / config.name), raylet)
    thread = threading.Thread(target=watch.work, daemon=True)
    thread.start()
    try:
        train(spoken.JudgedArena(), config)
    finally:
        watch.over.set()
        thread.join()
    return watch


def told(name: str, half: Sample, end: Sample) -> str:
    """How a process fared in the second half."""
    growth = end.resident / half.resident - 1
    return (
        f"{name}: {half.resident / 2**20:.1f} MiB, then {end.resident / 2**20:.1f} ({growth:+.1%}); "
        f"files {half.files}, {end.files}; references {half.references}, {end.references}"
    )


@pytest.mark.timeout(3600)
def test_however_long_a_run_nothing_grows_and_nothing_is_left(tmp_path: Path, tiny: Path, raylet: Raylet):
    config = spoken.config(
        tmp_path / "soak",
        tiny,
        num_steps=NUM_STEPS,
        batch_size=BATCH,
        max_tokens=2,
        engines=2 if LONG else 1,
        concurrency=BATCH,
        checkpoint_every=20,
        step_timeout=600,
    )
    play(config.model_copy(update={"name": "first", "num_steps": 1}), raylet)  # opens what is opened once
    before = left_over(raylet)
    started = time.monotonic()
    watch = play(config, raylet)
    print(f"{EPISODES} episodes in {time.monotonic() - started:.0f} s")
    left = left_over(raylet)
    assert (left.actors, left.objects) == ((), 0)
    assert left.files <= before.files
    trees = [row.tree for row in read_rollouts(watch.log.rollouts_path)]
    assert sum(1 + len(tree.children) for tree in trees if tree.error is None) == EPISODES
    if LONG:
        assert_nothing_grew(watch.about(0.5), watch.about(1.0))


def assert_nothing_grew(half: Look, end: Look) -> None:
    assert half.processes.keys() == end.processes.keys()
    for key, sample in end.processes.items():
        print(told(key[0], half.processes[key], sample))
    for key, sample in end.processes.items():
        was, name = half.processes[key], key[0]
        assert sample.resident < GROWTH * was.resident, name
        assert sample.files <= was.files, name
