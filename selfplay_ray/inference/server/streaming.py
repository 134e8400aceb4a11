"""Answers on the wire: JSON at once, or server-sent events as things are said."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from selfplay_ray.errors import SelfPlayError
from selfplay_ray.inference.server.errors import api_error

DONE = "data: [DONE]\n\n"


def json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def event_stream(events: AsyncGenerator[BaseModel, None]) -> StreamingResponse:
    """One event for each of ``events``, an error as the last if there is one, then ``[DONE]``."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(events), media_type="text/event-stream", headers=headers)


async def _lines(events: AsyncGenerator[BaseModel, None]) -> AsyncGenerator[str, None]:
    try:
        async with aclosing(events):
            async for event in events:
                yield f"data: {event.model_dump_json(exclude_none=True)}\n\n"
    except SelfPlayError as error:  # the status has been sent: the error is an event
        yield f"data: {api_error(error).body.model_dump_json()}\n\n"
    yield DONE
