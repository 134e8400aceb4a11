"""What a run needs to go on where its journal ends, as bytes that go into the journal with every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from selfplay_ray.errors import ConfigError
from selfplay_ray.types import EpisodeRequest

TUPLE = 1
"""Msgpack's extension code for a tuple."""


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
    """``arena`` is its ``state_dict``; ``finished`` and ``failed`` count episodes of the groups that were credited;
    ``extra`` are batches a version was given beside its own; ``pending`` were encoded by ``encode_pending``.
    ``obstacle`` as above. ``episodes`` are the types that the arena knows."""

    arena: Mapping[str, Any]
    admitted: int
    batches: int
    finished: int
    failed: int
    extra: Mapping[int, int]
    pending: Sequence[bytes]
    obstacle: str = ""
    episodes: Sequence[str] = ()


def encode_pending(name: str, batch: int, admitted_at: int, requests: Sequence[EpisodeRequest]) -> bytes:
    """A ``PendingState`` as msgpack."""
    kept = []
    for request in requests:
        try:
            kept.append(replace(request, artifact=_kept(request.artifact), meta=_kept(dict(request.meta))))
        except _NotKept as odd:
            obstacle = f"request {request.id} ({request.episode_type}) holds {odd}"
            return msgspec.msgpack.encode(PendingState(name, batch, admitted_at, [], obstacle))
    return msgspec.msgpack.encode(PendingState(name, batch, admitted_at, kept))


def encode_state(state: CoordinatorState) -> bytes:
    """``state`` as msgpack."""
    try:
        state = replace(state, arena=_kept(dict(state.arena)))
    except _NotKept as odd:
        state = replace(state, arena={}, obstacle=f"a store of the arena, or its credit, holds {odd}")
    return msgspec.msgpack.encode(state)


def decode_state(content: bytes) -> tuple[CoordinatorState, list[PendingState]]:
    """What ``encode_state`` was given, and what is pending.

    Raises:
        ConfigError: something could not be kept, or another version has written it.
    """
    try:
        state = msgspec.msgpack.decode(content, type=CoordinatorState, ext_hook=_marked)
        pending = [
            msgspec.msgpack.decode(group, type=PendingState, ext_hook=_marked) for group in state.pending
        ]
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"the run can't be resumed: its journal was written by another version of selfplay-ray ({error})"
        ) from error
    for obstacle in (state.obstacle, *(group.obstacle for group in pending)):
        if obstacle:
            raise ConfigError(
                f"the run can't be resumed: {obstacle}, which a journal can't keep; "
                "it keeps text, numbers, lists, tuples and dicts"
            )
    return state, pending


class _NotKept(ValueError):
    """What a journal can't give back as it was; says what it is."""


def _kept(value: Any) -> Any:
    """``value`` in what msgpack gives back as it was: a tuple is marked, or it would come back as a list.

    A class of tuples, numbers or texts would come back without its class, so that what is played again would be
    something else.

    Raises:
        _NotKept: it isn't plain data.
    """
    kind = type(value)
    if kind is list:
        return [_kept(part) for part in value]
    if kind is tuple:
        return msgspec.msgpack.Ext(TUPLE, msgspec.msgpack.encode([_kept(part) for part in value]))
    if kind is dict:
        return {_kept_key(key): _kept(part) for key, part in value.items()}
    if kind is int and not -(2**63) <= value < 2**64:
        raise _NotKept("an int of more than 64 bits")
    if value is not None and kind not in (str, bool, int, float, bytes):
        raise _NotKept(f"a {kind.__name__}")
    return value


def _kept_key(key: Any) -> Any:
    """A tuple among keys comes back as one by itself: a list can't be a key."""
    return tuple(map(_kept_key, key)) if type(key) is tuple else _kept(key)


def _marked(code: int, content: memoryview) -> Any:
    if code == TUPLE:
        return tuple(msgspec.msgpack.decode(content, ext_hook=_marked))
    raise msgspec.ValidationError(f"extension {code} is unknown")
