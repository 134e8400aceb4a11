"""The versions of the policy at an endpoint: the newest is published, an old one goes when its last request is done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import openai

from selfplay_ray.errors import SelfPlayError
from selfplay_ray.inference.adapter_names import versioned_name
from selfplay_ray.inference.endpoint_adapters import Delivery, unload
from selfplay_ray.inference.endpoints import Endpoint, sentence_of

Weights = Mapping[str, np.ndarray]

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class EndpointModel:
    """What requests ask for by ``name``, and how many of ours are being answered by it."""

    name: str
    version: int
    in_flight: int = 0


class EndpointVersions:
    """The policy at ``endpoint``, as adapters ``<prefix>@v0``, ``<prefix>@v1``, …, brought there by ``delivery``.

    ``live`` is the newest that the endpoint serves, None before the first; ``loaded`` are all of ours that it has.
    """

    def __init__(self, endpoint: Endpoint, prefix: str, delivery: Delivery) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._delivery = delivery
        self._wanted: tuple[Weights, int] | None = None
        self._publishing = asyncio.Lock()
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self.live: EndpointModel | None = None
        self.loaded: dict[str, EndpointModel] = {}
        self.swaps = 0
        self.swap_seconds = 0.0

    @property
    def in_use(self) -> bool:
        return any(model.in_flight for model in self.loaded.values())

    def want(self, weights: Weights, version: int) -> None:
        """Let this be the newest version, whenever it is published."""
        self._wanted = weights, version

    async def publish(self) -> None:
        """Have the endpoint serve the newest version, unless it does.

        Raises:
            SelfPlayError: it doesn't take it, or it can't be written.
            openai.APIError: it can't be asked now, and may have it or not.
        """
        async with self._publishing:
            if self._wanted is None:
                return
            weights, version = self._wanted
            if self.live is not None and self.live.version == version:
                return
            started = time.perf_counter()
            name = versioned_name(self._prefix, version)
            model = self.loaded.setdefault(name, EndpointModel(name, version))
            await self._delivery.load(name, weights, version)
            self.live = model
            self.swaps += 1
            self.swap_seconds += time.perf_counter() - started
        self.unload_unused()

    def has_lost(self, live: EndpointModel | None, names: Collection[str]) -> bool:
        """Whether ``live`` isn't among the ``names`` that the endpoint has told since, so that it must be published
        again."""
        if live is None or live is not self.live or live.name in names:
            return False
        self.live = None
        return True

    def unload_unused(self) -> None:
        """Begin to unload what is neither the newest version nor in use."""
        for model in self.loaded.values():
            wanted = self._wanted is not None and model.version == self._wanted[1]
            if model is not self.live and not wanted and not model.in_flight:
                self._unload_soon(model)

    async def unload_all(self) -> None:
        """Also what is being published right now."""
        self._wanted = None
        async with self._publishing:
            self.live = None
        for model in self.loaded.values():
            self._unload_soon(model)
        await asyncio.gather(*self._unloading.values())

    def _unload_soon(self, model: EndpointModel) -> None:
        if model.name not in self._unloading:
            task = self._unloading[model.name] = asyncio.create_task(self._unload(model.name))
            task.add_done_callback(lambda _: self._unloading.pop(model.name))

    async def _unload(self, name: str) -> None:
        """One that fails is tried again at the next occasion."""
        try:
            await unload(self._endpoint, name)
            del self.loaded[name]
            await asyncio.to_thread(self._delivery.forget, name)
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            logger.warning("%s is left where it is: %s", name, sentence_of(self._endpoint, error))
        except SelfPlayError as error:
            logger.warning("%s is left where it is: %s", name, error)
