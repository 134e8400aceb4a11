"""Before a request is looked at: who may ask, and how much may be sent. Plain ASGI, so that streams stay streams."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfplay_ray.inference.server.errors import APIError

OPEN_PATHS = ("/health", "/ping")
ADAPTER_PATH = "/v1/load_lora_adapter"


@dataclass(frozen=True, slots=True)
class LocalHost:
    """Lets through what was sent to this machine by a name of its own, or by ``host``.

    A page somewhere can let its own name point to 127.0.0.1 and have a browser here send it requests (DNS rebinding);
    the name it used is in them. Starlette's TrustedHostMiddleware answers in another shape.
    """

    app: ASGIApp
    host: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_ours(scope):
            error = APIError(
                403,
                "this server has no API key and so serves only who asks for it as localhost; the Host header says "
                "otherwise: start the server with --api-key",
                code="host_not_allowed",
            )
            await error.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        try:
            name = urlsplit(f"//{given}").hostname or ""
        except ValueError:  # brackets with no address in them
            return False
        return is_loopback(name) or name == self.host.lower()


@dataclass(frozen=True, slots=True)
class BearerToken:
    """Lets through what carries the key, and whoever asks for the server's health."""

    app: ASGIApp
    key: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows_key(scope):
            error = APIError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.key.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Refuses bodies above ``limit`` bytes (``adapter_limit`` for adapters) before they are read, or as they are."""

    app: ASGIApp
    limit: int
    adapter_limit: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.adapter_limit if scope["path"] == ADAPTER_PATH else self.limit
        message = f"the request is larger than {limit} bytes"
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            error = APIError(413, message, code="request_too_large")
            await error.response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            event = await receive()
            received += len(event.get("body", b""))
            if received > limit:
                raise HTTPException(413, message)  # FastAPI lets this one pass while it reads a body
            return event

        await self.app(scope, counted, send)
