"""The replay queue: what was played and not yet trained on, in a journal that survives a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property

import ray

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.replay import Lease, ReplayBuffer
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.types import RolloutGroup


class ReplayQueue:
    """Ray's side of a :class:`~selfplay_ray.replay.ReplayBuffer` in the run's folder. All of it may be said twice, and
    is, where the process was lost before it could answer."""

    def __init__(self, context: ActorContext) -> None:
        self._path = RunLog(context.run_folder).replay_path
        self._connected = False
        self._arrival = asyncio.Event()  # of the next groups

    async def connect(self, peers: Peers) -> None:
        _ = self._buffer  # what is wrong with the journal is told before anything is played
        self._connected = True

    async def connected(self) -> bool:
        return self._connected

    @cached_property
    def _buffer(self) -> ReplayBuffer:
        """Opened when it is first needed: in a process that has replaced another, before it is connected."""
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        return ReplayBuffer(self._path, requeue=not restarted)  # else its learner may yet ack

    async def put(self, groups: Sequence[RolloutGroup], state: bytes | None = None) -> int:
        put = self._buffer.put(groups, state)
        arrived, self._arrival = self._arrival, asyncio.Event()
        arrived.set()
        return put

    async def state(self) -> bytes | None:
        return self._buffer.state()

    async def lease(
        self, roots: int, *, or_fewer: bool = False, lease_id: str = "", wait: float = 0.0
    ) -> Lease | None:
        """Where there is nothing to lease, tried again as groups arrive, for ``wait`` seconds."""
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            lease = self._buffer.lease(roots, or_fewer=or_fewer, lease_id=lease_id)
            if lease is not None:
                return lease
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrival.wait()
            except TimeoutError:
                return None

    async def ack(self, lease_id: str, version: int) -> None:
        self._buffer.ack(lease_id, version)

    async def release(self, lease_id: str) -> None:
        self._buffer.release(lease_id)

    async def forget(self, version: int) -> None:
        self._buffer.forget(version)

    async def rewind(self, version: int) -> int:
        return self._buffer.rewind(version)
