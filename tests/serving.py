"""Our server started for real, in a thread of the test's process, on a port of loopback, also on that of one before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.inference.server.app import ServerLimits, create_app
from selfplay_ray.inference.server.command import bind, server_for
from selfplay_ray.inference.server.served import ServedModels


@contextmanager
def serving(
    engine: Engine,
    chat: ChatTokenizer,
    scale: float,
    port: int = 0,
    api_key: str | None = None,
    limits: ServerLimits | None = None,
) -> Iterator[str]:
    """A server of ``engine`` under the name tiny, without adapters; its address up to /v1."""
    listener = bind("127.0.0.1", port)
    models = ServedModels(engine, "tiny", AdapterShape(engine.adapter_shapes, scale))
    server = server_for(create_app(models, chat, api_key=api_key, limits=limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def models_at(url: str, **headers: str) -> list[str]:
    """The base model, and the adapters that are loaded."""
    return [model["id"] for model in httpx.get(f"{url}/models", headers=headers).json()["data"]]
