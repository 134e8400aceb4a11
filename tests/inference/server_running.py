"""A server started for real, on a free port of loopback, in front of the tiny model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.inference.server.app import ServerLimits, create_app
from selfplay_ray.inference.server.command import bind, server_for
from selfplay_ray.inference.server.served import ServedModels
from selfplay_ray.lora import LoRASettings

LORA = LoRASettings(rank=4, scale=2.0)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, and what is behind it."""

    url: str
    engine: Engine
    chat: ChatTokenizer
    shape: AdapterShape

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=60)

    def adapter(self, seed: int = 0, size: float = 0.3) -> dict[str, np.ndarray]:
        """Weights that change what the model says."""
        rng = np.random.default_rng(seed)
        shapes = self.shape.shapes.items()
        return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes}


@contextmanager
def running_server(
    model: Path,
    *,
    api_key: str | None = None,
    limits: ServerLimits | None = None,
    batch: int = 8,
    max_adapters: int = 4,
) -> Iterator[Running]:
    with ExitStack() as stack:
        listener: socket.socket = stack.enter_context(bind("127.0.0.1", 0))
        engine = stack.enter_context(
            Engine(model, lora=LORA, max_batch_size=batch, max_adapters=max_adapters)
        )
        chat = ChatTokenizer(model)
        shape = AdapterShape(engine.adapter_shapes, LORA.scale)
        app = create_app(ServedModels(engine, "tiny", shape), chat, api_key=api_key, limits=limits)
        server = server_for(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield Running(f"http://{host}:{port}", engine, chat, shape)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
