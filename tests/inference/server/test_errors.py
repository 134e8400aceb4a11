"""Our own errors as answers."""

from __future__ import annotations

from typing import cast

import httpx
import pytest

from selfplay_ray.errors import (
    AdapterError,
    ContextLengthError,
    EngineStoppedError,
    InferenceError,
    QueueFullError,
    RunLogError,
    SelfPlayError,
    UnknownNameError,
)
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.server.app import create_app
from selfplay_ray.inference.server.errors import api_error
from selfplay_ray.inference.server.served import ServedModels


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (QueueFullError("full"), 429, "rate_limit_error", "queue_full"),
        (ContextLengthError("long"), 400, "invalid_request_error", "context_length_exceeded"),
        (UnknownNameError("adapter", "a", ["b"]), 404, "invalid_request_error", "model_not_found"),
        (AdapterError("shape"), 400, "invalid_request_error", "invalid_adapter"),
        (InferenceError("a token"), 400, "invalid_request_error", None),
        (EngineStoppedError("closed"), 503, "server_error", None),
        (RunLogError("something else"), 500, "server_error", None),
    ],
)
def test_the_status_tells_whose_fault_it_is(error: SelfPlayError, status: int, kind: str, code: str | None):
    answer = api_error(error)
    assert (answer.status, answer.body.error.type, answer.body.error.code) == (status, kind, code)
    assert answer.body.error.message == str(error)
    # What may go better soon says so.
    assert ("Retry-After" in answer.headers) == (status in (429, 503))


async def test_a_bug_has_the_shape_of_an_error_too(chat: ChatTokenizer):
    app = create_app(ServedModels(cast(Engine, None), "no engine", None), chat)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/health")
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
