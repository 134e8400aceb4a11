"""The messages that a run sends for trees of episodes, between Ray actors that do nothing else: what is left of a
run's time when everything but Ray takes none."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import ray

from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import Handle

Seconds = list[float]  # a root's own, and its children's
MANY_CALLS = 1000


class BareWorker:
    """Mixed into a worker's class: plays trees by sleeping, and tells an arena what a rollout worker would."""

    async def play_bare(self, arena: Handle, group: int, tree: Seconds) -> None:
        self._bare = asyncio.create_task(_play(arena, group, tree))


async def _play(arena: Handle, group: int, tree: Seconds) -> None:
    own, *children = tree
    await arena.report.remote()  # asks for children
    await asyncio.gather(*(_child(arena, seconds) for seconds in children))
    await asyncio.sleep(own)
    await arena.report.remote(group)


async def _child(arena: Handle, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await arena.report.remote()


class BareArena:
    """Hands the trees of ``groups`` to the workers in turn: ``at_once`` groups at first, and ``a_step`` more whenever
    so many have ended."""

    def __init__(self, groups: Sequence[Sequence[Seconds]], at_once: int, a_step: int) -> None:
        self._groups = groups
        self._waiting = iter(range(len(groups)))
        self._left = [len(group) for group in groups]
        self._at_once, self._a_step = at_once, a_step
        self._ended = 0
        self._over = asyncio.Event()
        self._sent: set[asyncio.Task[None]] = set()

    async def play(self, arena: Handle, workers: Sequence[Handle]) -> float:
        """Seconds until all have ended."""
        self._arena, self._workers = arena, itertools.cycle(workers)
        started = time.perf_counter()
        self._begin(self._at_once)
        await self._over.wait()
        return time.perf_counter() - started

    async def report(self, group: int | None = None) -> None:
        """A worker tells something; of which ``group`` it was, when that was the end of a tree."""
        if group is None:
            return
        self._left[group] -= 1
        self._ended += not self._left[group]
        if not self._left[group] and self._ended % self._a_step == 0:
            self._begin(self._a_step)
        if self._ended == len(self._groups):
            self._over.set()

    def _begin(self, count: int) -> None:
        for group in itertools.islice(self._waiting, count):
            for tree in self._groups[group]:
                order = next(self._workers).play_bare.remote(self._arena, group, tree)
                task = asyncio.create_task(_sent(order))
                self._sent.add(task)
                task.add_done_callback(self._sent.discard)


async def _sent(order: Awaitable[None]) -> None:
    await order


def play_bare(
    workers: Sequence[Handle], groups: Sequence[Sequence[Seconds]], at_once: int, a_step: int
) -> float:
    """Seconds that ``groups`` take on ``workers``, of a class with :class:`BareWorker`."""
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": MANY_CALLS}
    arena: Handle = ray.remote(**options)(BareArena).remote(groups, at_once, a_step)
    seconds: float = get(arena.play.remote(arena, workers))
    ray.kill(arena)
    return seconds
