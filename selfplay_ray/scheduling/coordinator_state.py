"""What a run needs to go on where its journal ends, as bytes that go into the journal with every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from selfplay_ray.errors import ConfigError
from selfplay_ray.types import EpisodeRequest


@dataclass(frozen=True, slots=True)
class PendingState:
    """A group that isn't complete: its requests, artifacts chosen, and how many roots were admitted before its batch.

    ``obstacle`` says what can't be kept of it, if anything: the run goes on, but can't be resumed from here.
    """

    name: str
    batch: int
    admitted_at: int
    requests: Sequence[EpisodeRequest]
    obstacle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorState:
    """``arena`` is its ``state_dict``; ``finished`` and ``failed`` count episodes; ``extra`` are batches a version was
    given beside its own; ``pending`` were encoded by ``encode_pending``. ``obstacle`` as above."""

    arena: Mapping[str, Any]
    admitted: int
    batches: int
    finished: int
    failed: int
    extra: Mapping[int, int]
    pending: Sequence[bytes]
    obstacle: str = ""


def encode_pending(name: str, batch: int, admitted_at: int, requests: Sequence[EpisodeRequest]) -> bytes:
    """A ``PendingState`` as msgpack."""
    for request in requests:
        for part in (request.artifact, request.meta):
            if odd := _odd(part):
                obstacle = f"request {request.id} ({request.episode_type}) holds a {odd}"
                return msgspec.msgpack.encode(PendingState(name, batch, admitted_at, [], obstacle))
    return msgspec.msgpack.encode(PendingState(name, batch, admitted_at, requests))


def encode_state(state: CoordinatorState) -> bytes:
    """``state`` as msgpack."""
    if odd := _odd(state.arena):
        obstacle = f"a store of the arena, or its credit, holds a {odd}"
        state = replace(state, arena={}, obstacle=obstacle)
    return msgspec.msgpack.encode(state)


def decode_state(content: bytes) -> tuple[CoordinatorState, list[PendingState]]:
    """What ``encode_state`` was given, and what is pending.

    Raises:
        ConfigError: something could not be kept, or another version has written it.
    """
    try:
        state = msgspec.msgpack.decode(content, type=CoordinatorState)
        pending = [msgspec.msgpack.decode(group, type=PendingState) for group in state.pending]
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the run can't be resumed: its journal was written by another version of selfplay-ray ({error})"
        ) from error
    for obstacle in (state.obstacle, *(group.obstacle for group in pending)):
        if obstacle:
            raise ConfigError(
                f"the run can't be resumed: {obstacle}, which a journal can't keep; "
                "it keeps text, numbers, lists and dicts"
            )
    return state, pending


def _odd(value: object) -> str:
    """The type of something in ``value`` that isn't plain data; "" if all of it is."""
    if value is None or isinstance(value, (str, bool, int, float, bytes)):
        return ""
    if isinstance(value, Mapping):
        return next(filter(None, (_odd(part) for pair in value.items() for part in pair)), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_odd, value)), "")
    return type(value).__name__
