"""What the arena and its rollout workers send each other: many things in one message, either way.

Nobody waits inside a call. A worker that needs children reports them and goes on with other episodes; their
results come with later orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, ModelCall, Rollout

DESCRIPTION = 400
"""Characters of a call for children that are shown when it isn't what it was before."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model has said to an episode. ``call`` tells what it was asked: :func:`fingerprint`."""

    call: str
    completion: Completion


@dataclass(frozen=True, slots=True)
class Assignment:
    """Run this request. ``attempt`` tells this dispatch of it from others. ``answers`` are what the model said in
    earlier ones, up to where they last asked for children: asked the same again, it has the same said."""

    request: EpisodeRequest
    attempt: int
    answers: Sequence[Answer] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """The results of the ``call``-th ``generate_rollouts`` of the episode ``parent``, complete and in order; or why
    there are none."""

    parent: str
    attempt: int
    call: int
    results: list[GenerateResult]
    error: str = ""


@dataclass(slots=True)
class Orders:
    """From the arena to a worker, sent to it or as the answer to its report. ``cancelled``: (request id, attempt) of
    episodes nobody waits for any more. Told to begin ``afresh``, a worker first forgets all it is at. They are carried
    out in the order of their ``number``."""

    policy_version: int
    assignments: list[Assignment] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    afresh: bool = False
    number: int = 0

    def __bool__(self) -> bool:
        return bool(self.afresh or self.assignments or self.deliveries or self.cancelled)


@dataclass(frozen=True, slots=True)
class Spawn:
    """The episode ``parent`` asks for ``requests`` as its children, in its ``call``-th ``generate_rollouts``.

    ``asks`` tells, before artifacts are chosen, what for: :func:`description`. ``answers`` are what the model has said
    to the episode since it asked last.
    """

    parent: str
    attempt: int
    call: int
    requests: list[EpisodeRequest]
    asks: str = ""
    answers: Sequence[Answer] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """An episode is over: its own rollout. Its children's results are with the arena already."""

    rollout: Rollout
    attempt: int


@dataclass(slots=True)
class Report:
    """From a worker to the arena, its ``number``-th; the next one is sent when it was answered. ``began`` is the number
    of the orders that told the worker to begin afresh."""

    finished: list[Finished] = field(default_factory=list)
    spawned: list[Spawn] = field(default_factory=list)
    began: int = 0
    number: int = 0

    def __bool__(self) -> bool:
        return bool(self.finished or self.spawned)


def fingerprint(call: ModelCall) -> str:
    """The same for two calls if and only if they ask the same, by the same seed."""
    asked = (call.seed, call.role_id, call.messages, call.temperature, call.max_tokens)
    return hashlib.sha256(msgspec.msgpack.encode(asked)).hexdigest()


def description(requests: Sequence[EpisodeRequest]) -> str:
    """What is asked for, its beginning as JSON and a digest of it whole; of what isn't plain data, the type."""
    plain = [replace(request, id="") for request in requests]
    content = msgspec.json.encode(plain, enc_hook=lambda odd: f"<{type(odd).__qualname__}>")
    digest = hashlib.sha256(content).hexdigest()[:16]
    text = content.decode()
    return (
        f"{text[:DESCRIPTION]}{'…' if len(text) > DESCRIPTION else ''} ({len(requests)} requests, {digest})"
    )
