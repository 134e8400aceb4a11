"""Answers on the wire: JSON at once, or server-sent events as things are said."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.server.answers import Usage
from selfplay_ray.inference.server.errors import unavailable
from selfplay_ray.inference.server.schemas import StreamOptions

if TYPE_CHECKING:
    from selfplay_ray.inference.server.generation import Job

DONE = "data: [DONE]\n\n"


def json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def event_stream(events: AsyncGenerator[BaseModel, None]) -> StreamingResponse:
    """One event for each of ``events``, an error as the last if there is one, then ``[DONE]``."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(events), media_type="text/event-stream", headers=headers)


def usage_of_stream(
    options: StreamOptions | None, job: Job, versions: Sequence[Sequence[int]]
) -> Usage | None:
    """What a stream has used, if it was asked to tell; ``versions`` has one entry a token."""
    if options is None or not options.include_usage:
        return None
    return Usage.of(job.prompt_tokens, sum(map(len, versions)))


async def _lines(events: AsyncGenerator[BaseModel, None]) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(events):
            async for event in events:
                yield f"data: {event.model_dump_json(exclude_none=True)}\n\n"
    except InferenceError as error:  # the status has been sent: the error is an event
        yield f"data: {unavailable(str(error)).body.model_dump_json()}\n\n"
    yield DONE
