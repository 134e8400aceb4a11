"""Which models a server has: the base, and adapters on it by name. Today's engine carries one adapter at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from selfplay_ray.errors import AdapterError, InferenceError
from selfplay_ray.inference.adapter_names import version_in
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest, TokenChunk
from selfplay_ray.inference.server.errors import APIError, bad_request


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that requests may ask for. ``root`` is where its weights came from, ``parent`` what it adapts."""

    name: str
    root: str
    parent: str | None
    version: int
    created: int


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """Weights to be served as ``name``; ``version`` None lets the name or the last version tell."""

    name: str
    weights: Mapping[str, np.ndarray]
    version: int | None
    root: str
    replace: bool


class ServedModels(Protocol):
    """The models behind a server. Names are checked by ``find``; a request's model comes after that."""

    adapter_shape: AdapterShape | None

    @property
    def context_length(self) -> int | None: ...

    def list(self) -> list[ServedModel]: ...

    def find(self, name: str | None) -> ServedModel:
        """The model of that name; None is the base. Raises APIError 404 or 409."""
        ...

    def check(self, request: GenerationRequest) -> None:
        """Raise APIError 400 if ``request`` doesn't fit the model."""
        ...

    async def generate(self, model: ServedModel, request: GenerationRequest) -> Generation:
        """Raises InferenceError if the engine has stopped."""
        ...

    def stream(self, model: ServedModel, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """The same, as tokens come; whoever leaves off closes it, which ends the generation."""
        ...

    async def load(self, adapter: NewAdapter) -> ServedModel:
        """Raises AdapterError or APIError; then nothing has changed."""
        ...

    async def unload(self, name: str) -> None: ...

    def stats(self) -> EngineStats: ...

    def check_alive(self) -> None:
        """Raise InferenceError if nothing can be generated any more."""
        ...


@dataclass(slots=True)
class OneAdapter:
    """An engine under the name ``base`` as long as no adapter is loaded, and under the adapter's while one is."""

    engine: Engine
    base: str
    adapter_shape: AdapterShape | None
    adapter: ServedModel | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last_version: int = 0

    @property
    def context_length(self) -> int | None:
        return self.engine.context_length

    def list(self) -> list[ServedModel]:
        base = ServedModel(self.base, str(self.engine.model_path), None, 0, self.started)
        return [base, self.adapter] if self.adapter else [base]

    def find(self, name: str | None) -> ServedModel:
        base, *adapters = self.list()
        for adapter in adapters:
            if name == adapter.name:
                return adapter
        if name not in (None, "", self.base):
            known = ", ".join(model.name for model in self.list())
            raise APIError(
                404, f"there is no model {name!r}; known: {known}", param="model", code="model_not_found"
            )
        if adapters:
            raise APIError(
                409,
                f"the adapter {adapters[0].name!r} is loaded, and this engine computes one model at a time: "
                f"ask for it by name, or unload it",
                param="model",
                code="model_not_available",
            )
        return base

    def check(self, request: GenerationRequest) -> None:
        try:
            self.engine.check_fits(request)
        except InferenceError as error:
            raise bad_request(str(error)) from None

    async def generate(self, model: ServedModel, request: GenerationRequest) -> Generation:
        return await self.engine.generate(request)

    def stream(self, model: ServedModel, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        return self.engine.stream(request)

    async def load(self, adapter: NewAdapter) -> ServedModel:
        async with self._changing:
            self._check_free(adapter)
            version = self._version_of(adapter)
            await self.engine.load_adapter(adapter.weights, version)
            self._last_version = max(self._last_version, version)
            self.adapter = ServedModel(adapter.name, adapter.root, self.base, version, int(time.time()))
            return self.adapter

    async def unload(self, name: str) -> None:
        async with self._changing:
            if self.adapter is None or self.adapter.name != name or self.adapter_shape is None:
                raise APIError(
                    404, f"no adapter {name!r} is loaded", param="lora_name", code="model_not_found"
                )
            nothing = {key: np.zeros(shape, np.float32) for key, shape in self.adapter_shape.shapes.items()}
            await self.engine.load_adapter(nothing, version=0)
            self.adapter = None

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def check_alive(self) -> None:
        self.engine.check_alive()

    def _check_free(self, adapter: NewAdapter) -> None:
        if adapter.name == self.base:
            raise bad_request(f"{adapter.name!r} is the base model's name", "lora_name")
        if self.adapter is None:
            return
        if self.adapter.name != adapter.name:
            raise APIError(
                409,
                f"the adapter {self.adapter.name!r} is loaded, and this engine carries one: unload it first, "
                f"or replace it under its name with load_inplace",
                param="lora_name",
            )
        if not adapter.replace:
            raise bad_request(
                f"the adapter {adapter.name!r} is loaded already; use load_inplace to replace it", "lora_name"
            )

    def _version_of(self, adapter: NewAdapter) -> int:
        if adapter.version is not None:
            return adapter.version
        named = version_in(adapter.name)
        return self._last_version + 1 if named is None else named


def require_adapter(shape: AdapterShape | None) -> AdapterShape:
    """Raises AdapterError if the engine was started without one."""
    if shape is None:
        raise AdapterError("this server was started without an adapter; start it with --lora-rank 1 or more")
    return shape
