"""How every route that generates answers: whole, or in server-sent events, one for each piece of a choice."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from selfplay_ray.inference.decoding import to_spans
from selfplay_ray.inference.server.answers import Event, Usage, VersionSpan
from selfplay_ray.inference.server.context import ServerContext
from selfplay_ray.inference.server.generation import Job, replies, stream, unless_hung_up
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import StreamOptions
from selfplay_ray.inference.server.streaming import event_stream, json_response

Said = Piece | Reply
"""A whole reply, or what was added to one; a piece that ends one has the versions of all its tokens."""


class Head(TypedDict):
    """What OpenAI's answers begin with."""

    id: str
    created: int
    model: str


class Outcome(TypedDict):
    """What all choices have."""

    index: int
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None
    token_ids: list[int] | None
    policy_versions: list[VersionSpan] | None


@dataclass(slots=True)
class Wording(ABC):
    """How a route words what is said. With ``every_token`` a piece without text is worth an event too."""

    job: Job
    every_token: bool
    created: int = field(default_factory=lambda: int(time.time()), kw_only=True)

    @abstractmethod
    def whole(self, said: Sequence[Reply], usage: Usage) -> BaseModel:
        """The answer when it isn't streamed."""

    def opening(self) -> Iterable[BaseModel]:
        """Events before anything is said."""
        return ()

    @abstractmethod
    def event(self, index: int, piece: Piece) -> Event:
        """What ``piece`` adds to choice ``index``."""

    @abstractmethod
    def closing(self, usage: Usage) -> Event:
        """The last event, for who asked what a stream has used."""

    @property
    def head(self) -> Head:
        return {"id": self.job.id, "created": self.created, "model": self.job.model.name}


def outcome(index: int, said: Said, *, token_ids: bool) -> Outcome:
    return {
        "index": index,
        "finish_reason": said.finish_reason,
        "stop_reason": said.stop_reason,
        "token_ids": list(said.token_ids) if token_ids else None,
        "policy_versions": _spans(said.versions) if said.finish_reason else None,
    }


async def answer(
    request: Request,
    context: ServerContext,
    wording: Wording,
    *,
    streamed: bool | None,
    options: StreamOptions | None,
) -> Response:
    """What is said to ``wording.job``: whole, or ``streamed`` as its ``options`` say."""
    if streamed:
        return event_stream(_events(context, wording, options or StreamOptions()))
    said = await unless_hung_up(request, replies(context, wording.job))
    used = Usage.of(wording.job.prompt_tokens, sum(len(reply.token_ids) for reply in said))
    return json_response(wording.whole(said, used))


async def _events(
    context: ServerContext, wording: Wording, options: StreamOptions
) -> AsyncGenerator[BaseModel, None]:
    for event in wording.opening():
        yield event
    job = wording.job
    versions: list[list[int]] = [[] for _ in job.requests]
    async for index, piece in stream(context, job):
        versions[index] += piece.versions
        if piece.finish_reason:
            piece = dataclasses.replace(piece, versions=tuple(versions[index]))
        elif not (piece.text or wording.every_token):
            continue  # text may be held back, while more of it, or of a character, is awaited
        event = wording.event(index, piece)
        if options.include_usage and options.continuous_usage_stats:
            event.usage = Usage.of(len(job.prompt_of(index)), len(versions[index]))
        yield event
    if options.include_usage:
        yield wording.closing(Usage.of(job.prompt_tokens, sum(map(len, versions))))


def _spans(versions: Sequence[int]) -> list[VersionSpan]:
    """Policy versions, one a token, as JSON."""
    return [VersionSpan(start=s.start, end=s.end, version=s.version) for s in to_spans(versions)]
