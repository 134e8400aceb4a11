"""The desk over HTTP: a page for a person, and JSON for whoever asks or answers, all of it behind a token.

    POST /questions {"key", "text"}     ask; the same key again is the same question
    GET  /questions/KEY                 {"state": "waiting" | "answered" | "abstained", "answer"}
    GET  /waiting                       [{"number", "text", "seconds_left"}], oldest first
    POST /answers {"number", "answer"}  204, or 409 for what doesn't wait any more

The page itself knows nothing; its script has the token from the address' fragment, which browsers keep to themselves.
"""

from __future__ import annotations

import hmac
import socket
import threading
from types import TracebackType
from typing import Annotated, Self

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field

from selfplay_ray.errors import ClusterError
from selfplay_ray.human.desk import Desk
from selfplay_ray.human.page import PAGE, POLICY

STOP_SECONDS = 5.0
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")]


class Asked(BaseModel):
    """A question as a worker brings it."""

    model_config = ConfigDict(extra="forbid")
    key: Key
    text: str = Field(max_length=20_000)


class Answered(BaseModel):
    """An answer as a person gives it."""

    model_config = ConfigDict(extra="forbid")
    number: int
    answer: str = Field(max_length=2_000)


class OutcomeShown(BaseModel):
    """What became of a question."""

    state: str
    answer: str | None


class QuestionShown(BaseModel):
    """A question that waits."""

    number: int
    text: str
    seconds_left: float | None


def desk_app(desk: Desk, token: str) -> FastAPI:
    """The application that serves ``desk`` to whoever knows ``token``."""

    def knows_token(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(openapi_url=None)
    guarded = [Depends(knows_token)]

    @app.get("/")
    def page() -> Response:
        return Response(PAGE, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    @app.post("/questions", dependencies=guarded)
    def ask(asked: Asked) -> OutcomeShown:
        outcome = desk.post(asked.key, asked.text)
        return OutcomeShown(state=outcome.state, answer=outcome.answer)

    @app.get("/questions/{key}", dependencies=guarded)
    def outcome_of(key: str) -> OutcomeShown:
        outcome = desk.outcome(key)
        if outcome is None:
            raise HTTPException(404, "nobody has asked that")
        return OutcomeShown(state=outcome.state, answer=outcome.answer)

    @app.get("/waiting", dependencies=guarded)
    def waiting() -> list[QuestionShown]:
        return [
            QuestionShown(number=asked.number, text=asked.text, seconds_left=asked.seconds_left)
            for asked in desk.waiting()
        ]

    @app.post("/answers", dependencies=guarded, status_code=204)
    def answer(answered: Answered) -> None:
        if not desk.answer(answered.number, answered.answer):
            raise HTTPException(409, "it doesn't wait for an answer any more")

    return app


class DeskServer:
    """Serves a desk from a thread of this process while the context is open.

    Raises:
        ClusterError: ``host`` and ``port`` (0: any that is free) can't be had.
    """

    def __init__(self, desk: Desk, token: str, host: str, port: int) -> None:
        self._host = host
        try:
            self._socket = socket.create_server((host, port))
        except OSError as error:
            raise ClusterError(
                f"port {port} on {host} can't be had for the person to be asked: {error.strerror or error}; "
                "choose another with --human-port"
            ) from None
        config = uvicorn.Config(
            desk_app(desk, token), log_level="warning", access_log=False, server_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="human-desk", daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self._host}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])
