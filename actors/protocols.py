"""What the cluster asks of the class in each place, so that one of your own can take it.

Every class is made with an :class:`ActorContext` and then, when all actors stand, connected with
:class:`Peers`: handles of all of them. Methods are called through Ray; those of a class with ``async`` methods
run on one event loop, and none may wait for another actor's *episodes* inside a call (see
``selfplay_ray/scheduling/messages.py``).

Who gets a handle loads the module of its class: one that runs a model imports what it runs it with in ``connect``, and
the arena's process, the queue's and the broadcaster's are small and soon there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import SecretStr

from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import SelfPlayError
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest
from selfplay_ray.replay import Lease
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.scheduling.messages import Orders, Report
from selfplay_ray.types import Completion, ModelCall, RolloutGroup

Handle = Any  # ray.actor.ActorHandle, whose methods Ray makes up


@dataclass(frozen=True, slots=True)
class ActorContext:
    """What an actor is made with.

    ``name`` is unique in the cluster: "worker-0"; ``index`` counts those of its place. ``run_id`` is chance's, and
    no other run's, be it of the same name. ``endpoint_key`` is only told to who asks endpoints.
    """

    name: str
    config: RunConfig
    arena: Arena
    run_folder: Path
    index: int = 0
    run_id: str = ""
    endpoint_key: SecretStr = field(default_factory=lambda: SecretStr(""))


@dataclass(frozen=True, slots=True)
class Peers:
    """Handles of everybody. ``workers`` by name; ``engines`` are those at endpoints, too."""

    arena: Handle
    queue: Handle
    learner: Handle
    broadcaster: Handle
    workers: Mapping[str, Handle]
    engines: Sequence[Handle]
    judges: Sequence[Handle]


@dataclass(frozen=True, slots=True)
class ArenaStatus:
    """What the arena is doing. ``failure`` says why the run can't go on; ``unfinished`` are a few of the
    requests in flight and what each waits for. ``replayed`` and ``overdue`` count episodes that were played again:
    their worker was lost, or was slow and another tried as well. ``warnings`` are those since it was asked last."""

    version: int
    finished: int
    failed: int
    in_flight: int
    done: bool
    failure: SelfPlayError | None = None
    unfinished: list[str] = field(default_factory=list)
    replayed: int = 0
    overdue: int = 0
    warnings: list[str] = field(default_factory=list)


class ConnectedActor(Protocol):
    """Common to all: connecting is also when to load what is heavy, so that a failure is told in one sentence."""

    async def connect(self, peers: Peers) -> None: ...


class RestartedActor(ConnectedActor, Protocol):
    """One whose process Ray may replace (``ActorSpec.max_restarts``). ``connected`` is False in a process that was
    restarted and has forgotten everything; it is asked now and then, and connected again, or killed if it doesn't
    answer. Where ``ActorSpec.max_task_retries`` says so, a call that is lost with the process is made again, so that
    whatever is asked of it may be asked twice."""

    async def connected(self) -> bool: ...


class ArenaProtocol(RestartedActor, Protocol):
    """Sends episode requests to workers, gathers results, credits them, fills the queue.

    ``report`` is answered with what there is to tell the worker. ``play_beside`` is told which versions need batches
    beside their own, and tells whether the run's last is played and in the queue. ``evaluation`` begins that of a
    version when it is first asked for, and is None until it is over. ``drain`` returns when all that was credited is in
    the queue, and has nothing played any more.
    """

    async def start(self) -> None: ...

    async def report(self, worker: str, report: Report) -> Orders | None: ...

    async def fail(self, reason: str) -> None: ...

    async def advance(self, version: int) -> None: ...

    async def status(self) -> ArenaStatus: ...

    async def play_beside(self, batches: Mapping[int, int]) -> bool: ...

    async def evaluation(self, version: int) -> dict[str, float] | None: ...

    async def finish(self) -> None: ...

    async def drain(self) -> None: ...


class WorkerProtocol(RestartedActor, Protocol):
    """Plays episodes. ``accept`` tells whether it was connected, and took the orders."""

    async def accept(self, orders: Orders) -> bool: ...


class EngineProtocol(RestartedActor, Protocol):
    """Samples tokens, and takes new weights while it does; UnavailableError until it has got the first."""

    async def generate(self, request: GenerationRequest) -> Generation: ...

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None: ...

    async def stats(self) -> EngineStats: ...


class EndpointProtocol(EngineProtocol, Protocol):
    """An engine somewhere else, which stays when the run is over: ``close`` leaves nothing of the run there."""

    async def close(self) -> None: ...


class JudgeProtocol(RestartedActor, Protocol):
    """Answers model calls that are made without a role. Nothing it says is trained on."""

    async def complete(self, call: ModelCall) -> Completion: ...


class QueueProtocol(RestartedActor, Protocol):
    """Keeps groups until they were trained on; see :class:`~selfplay_ray.replay.ReplayBuffer`. ``lease`` waits so many
    seconds for something to lease."""

    async def put(self, groups: Sequence[RolloutGroup], state: bytes | None = None) -> int: ...

    async def state(self) -> bytes | None: ...

    async def lease(
        self, roots: int, *, or_fewer: bool = False, lease_id: str = "", wait: float = 0.0
    ) -> Lease | None: ...

    async def ack(self, lease_id: str, version: int) -> None: ...

    async def release(self, lease_id: str) -> None: ...

    async def forget(self, version: int) -> None: ...

    async def rewind(self, version: int) -> int: ...


class LearnerProtocol(RestartedActor, Protocol):
    """Takes the training step after the one that was ``taken`` last, or after -1, as step 0, has what it begins with
    evaluated. None when nothing is left to train on.

    One that was replaced raises UnavailableError until it is connected, and takes the steps since its last checkpoint
    again."""

    def step(self, taken: int) -> StepMetrics | None: ...


class BroadcasterProtocol(RestartedActor, Protocol):
    """Gives weights to all engines, then tells the arena that the policy has advanced. An engine that was away
    catches up. ``version`` is that of the weights it has, None in one that was replaced: they are to be published
    again."""

    async def publish(self, weights: Mapping[str, np.ndarray], version: int) -> None: ...

    async def catch_up(self, engine: Handle) -> None: ...

    async def version(self) -> int | None: ...
