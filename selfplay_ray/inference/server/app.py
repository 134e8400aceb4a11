"""The application: routes, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

import selfplay_ray
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.server import (
    routes_chat,
    routes_completions,
    routes_generate,
    routes_models,
    routes_status,
    routes_tokens,
)
from selfplay_ray.inference.server.context import Queue, ServerContext
from selfplay_ray.inference.server.errors import answer_errors
from selfplay_ray.inference.server.guards import BearerToken, BodyLimit, LocalHost
from selfplay_ray.inference.server.metrics import ServerMetrics
from selfplay_ray.inference.server.served import ServedModels
from selfplay_ray.inference.server.tokenizing import Tokenizing


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Most generations that run or wait, and most bytes of a request, and of one that brings an adapter."""

    generations: int = 1024
    request_bytes: int = 16 * 2**20
    adapter_bytes: int = 512 * 2**20


def create_app(
    models: ServedModels,
    chat: ChatTokenizer,
    *,
    host: str = "localhost",
    api_key: str | None = None,
    limits: ServerLimits | None = None,
) -> FastAPI:
    """An ASGI application that serves ``models``; with ``api_key`` only to those who send it.

    Without one only to those who call it by a name of this machine, or ``host``.
    """
    limits = limits or ServerLimits()
    app = FastAPI(title="selfplay-ray", version=selfplay_ray.__version__, docs_url=None, redoc_url=None)
    app.state.context = ServerContext(
        models, Tokenizing(chat), Queue(limits.generations), ServerMetrics(models)
    )
    for room in (
        routes_chat,
        routes_completions,
        routes_generate,
        routes_tokens,
        routes_models,
        routes_status,
    ):
        app.include_router(room.router)
    answer_errors(app)
    app.add_middleware(BodyLimit, limit=limits.request_bytes, adapter_limit=limits.adapter_bytes)
    # The last one added stands outermost.
    if api_key is not None:
        app.add_middleware(BearerToken, key=api_key)
    else:
        app.add_middleware(LocalHost, host=host)
    return app
