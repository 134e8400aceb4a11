"""What the arena and its rollout workers send each other: many things in one message, either way.

Nobody waits inside a call. A worker that needs children reports them and goes on with other episodes; their
results come with later orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout


@dataclass(frozen=True, slots=True)
class Assignment:
    """Run this request. ``attempt`` tells this dispatch of it from earlier ones whose worker was lost."""

    request: EpisodeRequest
    attempt: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """The results of the ``call``-th ``generate_rollouts`` of the episode ``parent``, complete and in order."""

    parent: str
    attempt: int
    call: int
    results: list[GenerateResult]


@dataclass(slots=True)
class Orders:
    """From the arena to a worker. ``cancelled``: (request id, attempt) of episodes nobody waits for any more."""

    policy_version: int
    assignments: list[Assignment] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.assignments or self.deliveries or self.cancelled)


@dataclass(frozen=True, slots=True)
class Spawn:
    """The episode ``parent`` asks for ``requests`` as its children, in its ``call``-th ``generate_rollouts``."""

    parent: str
    attempt: int
    call: int
    requests: list[EpisodeRequest]


@dataclass(frozen=True, slots=True)
class Finished:
    """An episode is over: its own rollout. Its children's results are with the arena already."""

    rollout: Rollout
    attempt: int


@dataclass(slots=True)
class Report:
    """From a worker to the arena."""

    finished: list[Finished] = field(default_factory=list)
    spawned: list[Spawn] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.finished or self.spawned)
