"""An inference engine somewhere else: a server that speaks vLLM's dialect, in an engine's place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from selfplay_ray.actors.engine_metrics import report_stats
from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.errors import ClusterError
from selfplay_ray.inference.requests import LIVE, EngineStats, Generation, GenerationRequest
from selfplay_ray.runlog.folder import RunLog

if TYPE_CHECKING:
    from selfplay_ray.inference.remote_engine import RemoteEngine


class EndpointEngine:
    """Ray's side of a :class:`~selfplay_ray.inference.remote_engine.RemoteEngine`."""

    def __init__(self, context: ActorContext) -> None:
        self._context = context
        self._engine: RemoteEngine | None = None

    async def connect(self, peers: Peers) -> None:
        engine = await asyncio.to_thread(_remote_engine, self._context)
        await engine.connect({role.temperature for role in self._context.arena.roles.values()})
        self._engine = engine
        self._reporting = asyncio.create_task(report_stats(self._context.name, engine.stats))

    async def connected(self) -> bool:
        return self._engine is not None

    async def generate(self, request: GenerationRequest) -> Generation:
        return await self._connected.generate(request)

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        await self._connected.load_adapter(weights, version)

    async def stats(self) -> EngineStats:
        return self._connected.stats()

    async def close(self) -> None:
        """Also where connecting failed, of it or of another."""
        if self._engine is not None:
            await self._engine.aclose()

    @property
    def _connected(self) -> RemoteEngine:
        if self._engine is None:
            raise ClusterError(f"{self._context.name} was asked before it was connected")
        return self._engine


def _remote_engine(context: ActorContext) -> RemoteEngine:
    # Clients of HTTP take seconds to import, and only this actor's process needs them.
    from selfplay_ray.inference.adapter_folders import AdapterFolders
    from selfplay_ray.inference.chat import ChatTokenizer
    from selfplay_ray.inference.endpoints import KEYLESS, Endpoint
    from selfplay_ray.inference.remote_engine import RemoteEngine

    config, log = context.config, RunLog(context.run_folder)
    key = context.endpoint_key.get_secret_value()
    return RemoteEngine(
        Endpoint(config.endpoints[context.index], key or KEYLESS),
        prefix=f"{log.name}-{context.run_id}-{LIVE}",
        eos_token_ids=ChatTokenizer(config.model_path).eos_token_ids,
        folders=AdapterFolders(log.published_dir, context.name, config.lora_scale, config.model_path),
        scale=config.lora_scale,
        model=config.endpoint_model,
        deadline=config.endpoint_timeout,
    )
