"""The judge pool: frozen copies of the base model that answer calls made without a role."""

from __future__ import annotations

import asyncio

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.models import resolve_model
from selfplay_ray.types import Completion, ModelCall


class JudgePool:
    """One member of the pool: an engine of its own, without an adapter, so that what it values doesn't drift."""

    def __init__(self, context: ActorContext) -> None:
        self._config = context.config

    async def connect(self, peers: Peers) -> None:
        self._client = await asyncio.to_thread(self._load)

    def _load(self) -> EngineClient:
        engine = Engine(resolve_model(self._config.model_path), max_batch_size=self._config.concurrency)
        return EngineClient.for_engine(engine, self._config.max_tokens)

    async def complete(self, call: ModelCall) -> Completion:
        return await self._client.complete(call)
