"""The replay queue: what was played and not yet trained on, in a journal that survives a kill."""

from __future__ import annotations

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

    def connect(self, peers: Peers) -> None:
        _ = self._buffer  # what is wrong with the journal is told before anything is played
        self._connected = True

    def connected(self) -> bool:
        return self._connected

    @cached_property
    def _buffer(self) -> ReplayBuffer:
        """Opened when it is first needed: in a process that has replaced another, before it is connected."""
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        return ReplayBuffer(self._path, requeue=not restarted)  # else its learner may yet ack

    def put(self, groups: Sequence[RolloutGroup], state: bytes | None = None) -> int:
        return self._buffer.put(groups, state)

    def state(self) -> bytes | None:
        return self._buffer.state()

    def lease(self, roots: int, *, or_fewer: bool = False, lease_id: str = "") -> Lease | None:
        return self._buffer.lease(roots, or_fewer=or_fewer, lease_id=lease_id)

    def ack(self, lease_id: str, version: int) -> None:
        self._buffer.ack(lease_id, version)

    def release(self, lease_id: str) -> None:
        self._buffer.release(lease_id)

    def forget(self, version: int) -> None:
        self._buffer.forget(version)

    def rewind(self, version: int) -> int:
        return self._buffer.rewind(version)
