"""Which models a server has: the base by its name, and adapters on it by theirs; the engine computes any of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from selfplay_ray.errors import AdapterError
from selfplay_ray.inference.adapter_names import version_in
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.peft import AdapterShape
from selfplay_ray.inference.server.errors import APIError, bad_request


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A name that requests may ask for. ``root`` is where its weights came from, ``parent`` what it adapts."""

    name: str
    root: str
    parent: str | None
    version: int
    created: int

    @property
    def adapter(self) -> str | None:
        """What the engine calls it; None is the base."""
        return self.name if self.parent else None


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """Weights to be served as ``name``; ``version`` None lets the name or the last version tell."""

    name: str
    weights: Mapping[str, np.ndarray]
    version: int | None
    root: str
    replace: bool


@dataclass(slots=True)
class ServedModels:
    """The models of ``engine``: itself under the name ``base``, and its adapters, which are of ``adapter_shape``."""

    engine: Engine
    base: str
    adapter_shape: AdapterShape | None
    started: int = field(default_factory=lambda: int(time.time()))
    _adapters: dict[str, ServedModel] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last_version: int = 0

    def list(self) -> list[ServedModel]:
        """The base first, then adapters in the order they were loaded."""
        base = ServedModel(self.base, str(self.engine.model_path), None, 0, self.started)
        return [base, *self._adapters.values()]

    def find(self, name: str | None) -> ServedModel:
        """The model of that name; None is the base. Raises APIError 404."""
        models = self.list()
        for model in models:
            if model.name == (name or self.base):
                return model
        known = ", ".join(model.name for model in models)
        raise APIError(
            404, f"there is no model {name!r}; known: {known}", param="model", code="model_not_found"
        )

    async def load(self, new: NewAdapter) -> ServedModel:
        """Serve ``new``. Who is being answered by an adapter that it replaces goes on with the new weights.

        Raises:
            APIError: 400, the name is taken.
            AdapterError: the weights don't fit, or there is no room for another adapter. Nothing has changed then.
        """
        async with self._changing:
            if new.name == self.base:
                raise bad_request(f"{new.name!r} is the base model's name", "lora_name")
            if new.name in self._adapters and not new.replace:
                raise bad_request(
                    f"the adapter {new.name!r} is loaded already; use load_inplace to replace it", "lora_name"
                )
            version = self._version_of(new)
            await self.engine.load_adapter(new.weights, version, new.name)
            self._last_version = max(self._last_version, version)
            model = ServedModel(new.name, new.root, self.base, version, int(time.time()))
            self._adapters[new.name] = model
            return model

    async def unload(self, name: str) -> None:
        """Serve an adapter no longer; who is being answered by it is answered to the end. Raises APIError 404."""
        async with self._changing:
            if name not in self._adapters:
                raise APIError(
                    404, f"no adapter {name!r} is loaded", param="lora_name", code="model_not_found"
                )
            await self.engine.unload_adapter(name)
            del self._adapters[name]

    def _version_of(self, new: NewAdapter) -> int:
        if new.version is not None:
            return new.version
        named = version_in(new.name)
        return self._last_version + 1 if named is None else named


def require_adapter(shape: AdapterShape | None) -> AdapterShape:
    """Raises AdapterError if the engine was started without one."""
    if shape is None:
        raise AdapterError("this server was started without an adapter; start it with --lora-rank 1 or more")
    return shape
