"""The models of an endpoint: which it has, how weights get there under a name of their own, and how they go again."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import openai
from pydantic import ValidationError
from safetensors.numpy import save

from selfplay_ray.errors import AdapterError, ConfigError, InferenceError
from selfplay_ray.inference.adapter_folders import AdapterFolders
from selfplay_ray.inference.endpoints import CONNECT_SECONDS, Endpoint, is_retryable, sentence_of
from selfplay_ray.inference.openai_answers import Wire
from selfplay_ray.inference.peft import to_peft

Weights = Mapping[str, np.ndarray]

OURS = "selfplay-ray"
"""The owner of our own server's models."""
LOOK_SECONDS = 10.0
LOAD_SECONDS = 120.0
UNLOAD_SECONDS = 10.0


class ModelCard(Wire):
    """A base model, or with a ``parent`` an adapter."""

    id: str
    parent: str | None = None
    owned_by: str = ""
    max_model_len: int | None = None


class ModelList(Wire):
    data: list[ModelCard]


class Delivery(Protocol):
    """A way to get weights to an endpoint."""

    async def load(self, name: str, weights: Weights, version: int) -> None:
        """Return when the endpoint serves ``weights`` as ``name``; also where it does already.

        Raises:
            AdapterError: it doesn't take them.
            openai.APIError: it can't be asked now.
        """
        ...

    def forget(self, name: str) -> None:
        """The endpoint serves ``name`` no longer, and needs nothing of it."""
        ...


async def list_models(endpoint: Endpoint) -> list[ModelCard]:
    """What the endpoint serves.

    Raises:
        InferenceError: it answers something else.
        openai.APIError: it can't be asked.
    """
    timeout = openai.Timeout(LOOK_SECONDS)
    raw = await endpoint.client.models.with_raw_response.list(timeout=timeout)
    try:
        return ModelList.model_validate_json(raw.content).data
    except ValidationError:
        raise InferenceError(f"{endpoint.url} is no endpoint: its /models are no list of models") from None


def find_base(models: Sequence[ModelCard], wanted: str, url: str) -> ModelCard:
    """The base model called ``wanted``, or whatever it is called if that is empty.

    Raises:
        ConfigError: there is none.
    """
    bases = [model for model in models if model.parent is None]
    for model in bases:
        if wanted in ("", model.id):
            return model
    known = ", ".join(model.id for model in bases) or "none"
    raise ConfigError(f"{url} serves no model {wanted!r}; it has {known}")


async def unload(endpoint: Endpoint, name: str) -> None:
    """Have the adapter served no longer; it may be gone already.

    Raises:
        openai.APIError: the endpoint can't be asked, or refuses.
    """
    try:
        await _post(endpoint, "/unload_lora_adapter", {"lora_name": name}, UNLOAD_SECONDS)
    except openai.NotFoundError:
        return


def delivery_to(endpoint: Endpoint, base: ModelCard, folders: AdapterFolders, scale: float) -> Delivery:
    """How ``endpoint`` takes adapters: our own server in the request, any other from a folder that it reads.

    The request needs no disk in common, and nothing is found out by trying: a server on another machine could read
    a folder of that path, too.
    """
    return InRequests(endpoint, scale) if base.owned_by == OURS else InFolders(endpoint, folders)


@dataclass(frozen=True, slots=True)
class InRequests:
    """Weights travel in the request, as base64 of safetensors: our own server's way."""

    endpoint: Endpoint
    scale: float

    async def load(self, name: str, weights: Weights, version: int) -> None:
        # Encoding megabytes would hold up everybody else's tokens.
        body = await asyncio.to_thread(self._body, name, weights, version)
        await _load(self.endpoint, name, body)

    def forget(self, name: str) -> None:
        pass

    def _body(self, name: str, weights: Weights, version: int) -> dict[str, object]:
        rank = max((value.shape[1] for key, value in weights.items() if key.endswith(".lora_a")), default=0)
        return {
            "lora_name": name,
            "lora_weights": base64.b64encode(save(to_peft(weights))).decode("ascii"),
            "lora_config": {"r": rank, "lora_alpha": self.scale * rank},
            "policy_version": version,
        }


@dataclass(frozen=True, slots=True)
class InFolders:
    """Weights lie on a disk that the endpoint reads: vLLM's way."""

    endpoint: Endpoint
    folders: AdapterFolders

    async def load(self, name: str, weights: Weights, version: int) -> None:
        folder = await asyncio.to_thread(self.folders.take, name, weights)
        await _load(self.endpoint, name, {"lora_name": name, "lora_path": str(folder)})

    def forget(self, name: str) -> None:
        self.folders.give_back(name)


async def _load(endpoint: Endpoint, name: str, body: Mapping[str, object]) -> None:
    try:
        await _post(endpoint, "/load_lora_adapter", body, LOAD_SECONDS)
    except openai.APIStatusError as error:
        if is_retryable(error):
            raise
        if name in {model.id for model in await list_models(endpoint)}:
            return  # an earlier attempt that got no answer: nobody else uses this name
        raise refusal(endpoint, error) from error


def refusal(endpoint: Endpoint, error: openai.APIStatusError) -> AdapterError:
    """What it means that an endpoint doesn't take an adapter, and what may be missing."""
    return AdapterError(
        f"{sentence_of(endpoint, error)}: it doesn't take the adapter; vLLM needs --enable-lora, "
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, a --max-lora-rank that is large enough, and the run's folder on a "
        f"disk it can read"
    )


async def _post(endpoint: Endpoint, path: str, body: Mapping[str, object], seconds: float) -> None:
    timeout = openai.Timeout(seconds, connect=CONNECT_SECONDS)
    await endpoint.client.post(path, cast_to=str, body=body, options={"timeout": timeout})
