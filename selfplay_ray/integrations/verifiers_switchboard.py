"""Where an environment of verifiers' finds its model: a server on loopback that hands every request to the rollout it
belongs to.

It speaks as much of OpenAI's chat completions as a conversation needs, plain and as a stream. Who doesn't know its
token isn't heard; which rollout speaks is told by verifiers' session id, that of its trace.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Self

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfplay_ray.errors import EpisodeError, SelfPlayError
from selfplay_ray.types import Completion, Message

MODEL = "policy"
TOKEN_HEADER = "X-Selfplay-Token"  # noqa: S105 - its name, not the token
SESSION_HEADER = "X-Session-ID"
LARGEST = 64 * 2**20  # bytes of a request

HARMLESS: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "n": (1,),
    "stop": ([], ""),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
"""What can't be done for a policy that is trained on exactly the tokens it drew, and where asking changes nothing."""


class Part(BaseModel):
    """A piece of a message."""

    type: str
    text: str = ""


class SpokenMessage(BaseModel):
    """A message as OpenAI's clients send it; what else they say of it is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None

    def plain(self) -> Message:
        """The message as a chat template takes it.

        Raises:
            EpisodeError: it isn't text.
        """
        if self.role in ("tool", "function") or self.tool_calls:
            raise EpisodeError("it calls tools, and a conversation here is text and nothing else")
        parts = [self.content] if isinstance(self.content, str) else self._texts(self.content or [])
        return Message(role="system" if self.role == "developer" else self.role, content="".join(parts))

    @staticmethod
    def _texts(parts: list[Part]) -> list[str]:
        other = [part.type for part in parts if part.type != "text"]
        if other:
            raise EpisodeError(
                f"it shows the model a part of type {other[0]!r}, and a conversation here is text and nothing else"
            )
        return [part.text for part in parts]


class ChatRequest(BaseModel):
    """What is asked of the model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    messages: list[SpokenMessage] = Field(min_length=1)
    stream: bool | None = False
    temperature: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    def conversation(self) -> list[Message]:
        """Its messages.

        Raises:
            EpisodeError: they aren't text, or more is asked for than a reply.
        """
        for name, harmless in HARMLESS.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise EpisodeError(
                    f"it asks the model with {name!r}, which a policy in training can't be asked with"
                )
        return [message.plain() for message in self.messages]

    @property
    def limit(self) -> int | None:
        """Most tokens in the reply."""
        return self.max_completion_tokens or self.max_tokens


Line = Callable[[ChatRequest], Awaitable[Completion]]


class Switchboard:
    """The server; it is there while the context is open, in the event loop that opened it."""

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._lines: dict[str, Line] = {}
        app = web.Application(client_max_size=LARGEST)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None)

    @property
    def url(self) -> str:
        """What an OpenAI client calls its base URL."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    @property
    def headers(self) -> dict[str, str]:
        """What every request must carry."""
        return {TOKEN_HEADER: self._token}

    def connect(self, session: str, line: Line) -> None:
        """From now on ``line`` answers the requests of ``session``; it may raise SelfPlayError."""
        self._lines[session] = line

    def disconnect(self, session: str) -> None:
        """Nobody answers ``session`` any more."""
        self._lines.pop(session, None)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.Response:
        if not self._knows_token(request):
            return _failure(401, "the token is missing or wrong")
        line = self._lines.get(request.headers.get(SESSION_HEADER, ""))
        if line is None:
            return _failure(404, "no such rollout is being played")
        try:
            asked = ChatRequest.model_validate_json(await request.read())
            completion = await line(asked)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            return _failure(400, f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}")
        except SelfPlayError as error:
            return _failure(400, str(error))  # not one of those that clients try again
        if asked.stream:
            return web.Response(text=_streamed(completion), content_type="text/event-stream")
        return web.json_response(_answer(completion))

    async def _models(self, request: web.Request) -> web.Response:
        if not self._knows_token(request):
            return _failure(401, "the token is missing or wrong")
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def _knows_token(self, request: web.Request) -> bool:
        given = request.headers.get(TOKEN_HEADER, "")
        return hmac.compare_digest(given.encode(), self._token.encode())


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "selfplay"}}, status=status)


def _answer(completion: Completion) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text}
    choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason}
    return {**_head("chat.completion"), "choices": [choice], "usage": _usage(completion)}


def _streamed(completion: Completion) -> str:
    """The reply as a stream of events, which is sent when it is complete."""
    head = _head("chat.completion.chunk")
    delta = {"role": "assistant", "content": completion.text}
    said = {"index": 0, "delta": delta, "finish_reason": None}
    ended = {"index": 0, "delta": {}, "finish_reason": completion.finish_reason}
    events = [
        {**head, "choices": [said]},
        {**head, "choices": [ended]},
        {**head, "choices": [], "usage": _usage(completion)},
    ]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": MODEL,
    }


def _usage(completion: Completion) -> dict[str, int]:
    prompt, reply = len(completion.prompt_token_ids), len(completion.completion_token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}
