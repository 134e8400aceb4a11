"""The judge pool: frozen copies of the base model that answer calls made without a role."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.errors import UnavailableError
from selfplay_ray.models import resolve_model
from selfplay_ray.types import Completion, ModelCall

if TYPE_CHECKING:
    from selfplay_ray.inference.client import EngineClient
    from selfplay_ray.inference.engine import Engine


class JudgePool:
    """One member of the pool: an engine of its own, without an adapter, so that what it values doesn't drift."""

    def __init__(self, context: ActorContext) -> None:
        self._name = context.name
        self._config = context.config
        self._engine: Engine | None = None

    async def connect(self, peers: Peers) -> None:
        self._engine, self._client = await asyncio.to_thread(self._load)

    async def connected(self) -> bool:
        """Not answered while the engine's thread hangs."""
        if self._engine is None:
            return False
        await self._engine.pulse()
        return True

    def _load(self) -> tuple[Engine, EngineClient]:
        from selfplay_ray.inference.client import EngineClient
        from selfplay_ray.inference.engine import Engine

        engine = Engine(resolve_model(self._config.model_path), max_batch_size=self._config.concurrency)
        return engine, EngineClient.for_engine(engine, self._config.max_tokens)

    async def complete(self, call: ModelCall) -> Completion:
        if self._engine is None:  # replaced, and about to be connected
            raise UnavailableError(f"{self._name} has not loaded the model yet")
        return await self._client.complete(call)
