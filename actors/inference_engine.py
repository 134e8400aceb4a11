"""An inference engine: samples tokens, and takes new weights while it does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from selfplay_ray.actors.engine_metrics import report_stats
from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.errors import UnavailableError
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest
from selfplay_ray.models import resolve_model

if TYPE_CHECKING:
    from selfplay_ray.inference.engine import Engine


class InferenceEngine:
    """Ray's side of an :class:`~selfplay_ray.inference.engine.Engine` that carries the live adapter."""

    def __init__(self, context: ActorContext) -> None:
        self._name = context.name
        self._config = context.config
        self._loaded: Engine | None = None
        self._has_weights = False

    async def connect(self, peers: Peers) -> None:
        from selfplay_ray.inference.engine import Engine
        from selfplay_ray.lora import LoRASettings

        config = self._config
        lora = LoRASettings(config.lora_rank, config.lora_scale, config.lora_layers)
        self._loaded = await asyncio.to_thread(
            Engine, resolve_model(config.model_path), lora=lora, max_batch_size=config.concurrency
        )
        self._reporting = asyncio.create_task(report_stats(self._name, self._loaded.stats))

    async def connected(self) -> bool:
        """Not answered while the engine's thread hangs."""
        if self._loaded is None:
            return False
        await self._loaded.pulse()
        return True

    async def generate(self, request: GenerationRequest) -> Generation:
        if not self._has_weights:
            raise UnavailableError(f"{self._name} has not got the policy's weights yet")
        return await self._engine.generate(request)

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        if not self._has_weights or version != self._engine.policy_version:  # else published again
            await self._engine.load_adapter(weights, version)
            self._has_weights = True

    async def stats(self) -> EngineStats:
        return EngineStats() if self._loaded is None else self._loaded.stats()

    @property
    def _engine(self) -> Engine:
        if self._loaded is None:  # restarted, and the arena is about to notice
            raise UnavailableError(f"{self._name} has not loaded the model yet")
        return self._loaded
