"""The actors of a run whose episodes call no model, for measuring what is left of it then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray

from selfplay_ray.actors.arena import ArenaActor
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Handle, Peers
from selfplay_ray.actors.replay_queue import ReplayQueue
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.actors.spec import ActorSpec
from selfplay_ray.actors.weight_broadcaster import WeightBroadcaster
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig

STATUS_SECONDS = 1.0
MANY_CALLS = 1000
"""At a time, to actors whose calls only wait."""


def start_workers(
    cls: type[RolloutWorker], config: RunConfig, arena: Arena, folder: Path
) -> dict[str, Handle]:
    """``config.rollout_workers`` of them, on their way, by name."""
    return {
        name: _start(cls, ActorContext(name, config, arena, folder), MANY_CALLS)
        for name in (f"worker-{index}" for index in range(config.rollout_workers))
    }


def connect_run(workers: Mapping[str, Handle], config: RunConfig, arena: Arena, folder: Path) -> Peers:
    """A run with these ``workers``, connected and about to be started; nobody learns and nobody samples."""
    peers = Peers(
        arena=_start(ArenaActor, ActorContext("arena", config, arena, folder), MANY_CALLS),
        queue=_start(ReplayQueue, ActorContext("queue", config, arena, folder)),
        learner=None,
        broadcaster=_start(WeightBroadcaster, ActorContext("broadcaster", config, arena, folder)),
        workers=workers,
        engines=[],
        judges=[],
    )
    everybody = (peers.arena, peers.queue, peers.broadcaster, *peers.workers.values())
    get([actor.connect.remote(peers) for actor in everybody])
    return peers


def learn_nothing(peers: Peers, roots: int, version: int) -> None:
    """The step that makes policy ``version``, once ``roots`` were played, in a learner's order: they are acknowledged,
    the arena goes on, and what was in them is forgotten."""
    while (lease := get(peers.queue.lease.remote(roots, wait=STATUS_SECONDS))) is None:
        status: ArenaStatus = get(peers.arena.status.remote())
        if status.failure is not None:
            raise status.failure
    get(peers.queue.ack.remote(lease.id, version))
    get(peers.arena.advance.remote(version))
    get(peers.queue.forget.remote(version))


def _start(cls: type, context: ActorContext, concurrency: int | None = None) -> Handle:
    options = ActorSpec(cls, max_concurrency=concurrency).options()
    actor: Handle = ray.remote(**options)(cls).remote(context)
    return actor
