"""What goes wrong, as OpenAI's API says it: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from selfplay_ray.errors import (
    AdapterError,
    ContextLengthError,
    EngineStoppedError,
    InferenceError,
    QueueFullError,
    SelfPlayError,
    UnknownNameError,
)

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it
AGAIN = {"Retry-After": "1"}
FAULTS = (
    (EngineStoppedError, 503, None),
    (QueueFullError, 429, "queue_full"),
    (ContextLengthError, 400, "context_length_exceeded"),
    (UnknownNameError, 404, "model_not_found"),
    (AdapterError, 400, "invalid_adapter"),
    (InferenceError, 400, None),
)
"""Statuses and codes of our own errors, the particular before the general."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorDetail


class APIError(Exception):
    """An answer that isn't what was asked for. ``param`` names what is at fault, ``code`` the kind of fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> ErrorBody:
        kind = TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return ErrorBody(
            error=ErrorDetail(message=printable(self.message), type=kind, param=self.param, code=self.code)
        )

    @property
    def response(self) -> Response:
        return Response(self.body.model_dump_json(), self.status, self.headers, "application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> APIError:
    return APIError(400, message, param=param, code=code)


def queue_full(message: str) -> APIError:
    return APIError(429, message, code="queue_full", headers=AGAIN)


def api_error(error: SelfPlayError) -> APIError:
    """What the engine raises, as an answer."""
    status, code = next(
        ((status, code) for kind, status, code in FAULTS if isinstance(error, kind)), (500, None)
    )
    return APIError(status, str(error), code=code, headers=AGAIN if status in (429, 503) else None)


def printable(text: str) -> str:
    """``text`` without halves of surrogate pairs, which JSON can spell but UTF-8 can't carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def answer_errors(app: FastAPI) -> None:
    """Let ``app`` answer in this shape whatever goes wrong in it."""

    @app.exception_handler(APIError)
    async def _api_error(_: Request, error: APIError) -> Response:
        return error.response

    @app.exception_handler(SelfPlayError)
    async def _our_error(_: Request, error: SelfPlayError) -> Response:
        return api_error(error).response

    @app.exception_handler(Exception)
    async def _bug(request: Request, _: Exception) -> Response:  # whose traceback uvicorn writes to its log
        return APIError(500, f"the server failed at {request.url.path}; its log says how").response

    @app.exception_handler(RequestValidationError)
    async def _malformed(_: Request, error: RequestValidationError) -> Response:
        return malformed(error.errors()).response

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return APIError(error.status_code, message, headers=error.headers).response


def malformed(problems: Sequence[Any]) -> APIError:
    """The first of pydantic's complaints, with where in the request it is."""
    problem = problems[0]
    place = [str(part) for part in problem["loc"] if part not in ("body", "query")]
    where = printable(".".join(place)) or None
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return bad_request(f"unknown parameter {where!r}", where, "unknown_parameter")
    if kind == "missing":
        return bad_request(f"missing parameter {where!r}" if where else "the request has no body", where)
    return bad_request(f"{where}: {message}" if where else message, where)
