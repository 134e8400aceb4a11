"""Our own errors as answers."""

from __future__ import annotations

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
from selfplay_ray.inference.server.errors import api_error


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
