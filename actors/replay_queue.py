"""The replay queue: what was played and not yet trained on, in a journal that survives a kill."""

from __future__ import annotations

import ray

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.replay import Lease, ReplayBuffer
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.types import RolloutGroup


class ReplayQueue:
    """Ray's side of a :class:`~selfplay_ray.replay.ReplayBuffer` in the run's folder."""

    def __init__(self, context: ActorContext) -> None:
        self._path = RunLog(context.run_folder).replay_path

    def connect(self, peers: Peers) -> None:
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._buffer = ReplayBuffer(self._path, requeue=not restarted)  # else its learner may yet ack

    def put(self, group: RolloutGroup, state: bytes | None = None) -> bool:
        return self._buffer.put(group, state)

    def state(self) -> bytes | None:
        return self._buffer.state()

    def lease(self, roots: int, *, or_fewer: bool = False) -> Lease | None:
        return self._buffer.lease(roots, or_fewer=or_fewer)

    def ack(self, lease_id: str, version: int) -> None:
        self._buffer.ack(lease_id, version)

    def release(self, lease_id: str) -> None:
        self._buffer.release(lease_id)

    def forget(self, version: int) -> None:
        self._buffer.forget(version)

    def rewind(self, version: int) -> int:
        return self._buffer.rewind(version)
