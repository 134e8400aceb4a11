"""Gives new weights to every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np
import ray

from selfplay_ray.actors.protocols import ActorContext, Peers


class WeightBroadcaster:
    """Puts the weights into the object store once, hands every engine the reference, then tells the arena."""

    def __init__(self, context: ActorContext) -> None:
        pass

    async def connect(self, peers: Peers) -> None:
        self._peers = peers

    async def publish(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Return when every engine samples with ``version`` and the arena knows."""
        reference = ray.put(weights)
        await asyncio.gather(
            *(engine.load_adapter.remote(reference, version) for engine in self._peers.engines)
        )
        await self._peers.arena.advance.remote(version)
