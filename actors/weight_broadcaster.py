"""Gives new weights to every engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from selfplay_ray.actors.protocols import ActorContext, Handle, Peers
from selfplay_ray.errors import UnavailableError

TRIES = 3
PAUSE_SECONDS = 0.1


class WeightBroadcaster:
    """Puts the weights into the object store once, hands every engine the reference, then tells the arena.

    One that was replaced has no weights: the learner, which asks for their ``version``, publishes them again.
    """

    def __init__(self, context: ActorContext) -> None:
        self._current: tuple[ray.ObjectRef[Mapping[str, np.ndarray]], int] | None = None
        self._connected = asyncio.Event()

    async def connect(self, peers: Peers) -> None:
        self._peers = peers
        self._connected.set()

    async def connected(self) -> bool:
        return self._connected.is_set()

    async def publish(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Return when every engine that is there samples with ``version`` and the arena, if it is there, knows."""
        await self._connected.wait()
        self._current = ray.put(weights), version
        await asyncio.gather(*(self.catch_up(engine) for engine in self._peers.engines))
        with contextlib.suppress(RayActorError):  # one that is replaced asks for the version
            await self._peers.arena.advance.remote(version)

    async def catch_up(self, engine: Handle) -> None:
        """Give ``engine`` what was published last. One that is lost meanwhile is given it when it is back; of one that
        isn't, but whose answer is lost each time, the next version comes."""
        if self._current is None:
            return
        weights, version = self._current
        for _ in range(TRIES):
            try:
                await engine.load_adapter.remote(weights, version)
            except ActorUnavailableError:
                await asyncio.sleep(PAUSE_SECONDS)
            except (RayActorError, UnavailableError):
                return
            else:
                return

    async def version(self) -> int | None:
        """Of the weights that were published last; None if there are none."""
        return None if self._current is None else self._current[1]
