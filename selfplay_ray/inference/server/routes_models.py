"""Which models there are, and adapters that come and go."""

from __future__ import annotations

import asyncio
import base64
import binascii
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from selfplay_ray.errors import AdapterError
from selfplay_ray.inference import peft
from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context
from selfplay_ray.inference.server.errors import ErrorBody, bad_request
from selfplay_ray.inference.server.schemas import LoadLoRARequest, UnloadLoRARequest
from selfplay_ray.inference.server.served import NewAdapter, ServedModel, require_adapter
from selfplay_ray.inference.server.streaming import json_response

OUR_FILE = "adapter.safetensors"

router = APIRouter(responses={400: {"model": ErrorBody}, 404: {"model": ErrorBody}})


@router.get("/v1/models", response_model=answers.ModelList)
async def list_models(context: Context) -> Response:
    """The base model, and the adapters on it."""
    cards = [_card(model, context.models.engine.context_length) for model in context.models.list()]
    return json_response(answers.ModelList(data=cards))


@router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
async def load_lora_adapter(body: LoadLoRARequest, context: Context) -> Response:
    """Serve an adapter under a name. It is checked before anything changes: names, rank, shapes, finite numbers."""
    shape = require_adapter(context.models.adapter_shape)
    # Decoding megabytes would hold up everybody else's tokens.
    adapter = await asyncio.to_thread(read_adapter, body, shape)
    model = await context.models.load(adapter)
    return PlainTextResponse(f"Success: LoRA adapter '{model.name}' added successfully.")


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_lora_adapter(body: UnloadLoRARequest, context: Context) -> Response:
    """Serve an adapter no longer; who is being answered by it is answered to the end."""
    await context.models.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def read_adapter(body: LoadLoRARequest, shape: peft.AdapterShape) -> NewAdapter:
    """The adapter in ``body`` or on this machine, as one of ``shape``.

    Raises:
        APIError: it isn't said where the adapter is, or said twice.
        AdapterError: there is none there, or it doesn't fit.
    """
    if (body.lora_path is None) == (body.lora_weights is None):
        raise bad_request("give either lora_path or lora_weights", "lora_path")
    if body.lora_path is not None:
        root, data, config = body.lora_path, *_files(Path(body.lora_path))
    else:
        root, data, config = "", _decoded(body.lora_weights or ""), None
        if body.lora_config is not None:
            config = peft.read_peft_config(body.lora_config.model_dump_json())
    weights = peft.read_safetensors(data)
    if not peft.is_peft(weights):
        metadata = peft.read_metadata(data)
        ours = peft.rescaled(weights, _number(metadata, "scale", shape.scale), shape)
        version = body.policy_version
        if version is None and "version" in metadata:
            version = int(_number(metadata, "version", 0.0))
        return NewAdapter(body.lora_name, ours, version, root, body.load_inplace)
    if config is None:
        raise bad_request(
            "weights under PEFT's names need their r and lora_alpha in lora_config", "lora_config"
        )
    fitting = peft.from_peft(weights, config, shape)
    return NewAdapter(body.lora_name, fitting, body.policy_version, root, body.load_inplace)


def _files(path: Path) -> tuple[bytes, peft.PeftConfig | None]:
    """An adapter's weights on disk, and PEFT's configuration where it is PEFT's."""
    try:
        if (path / peft.CONFIG_FILE).is_file():
            config = peft.read_peft_config((path / peft.CONFIG_FILE).read_bytes())
            return _bytes_of(path / peft.WEIGHTS_FILE), config
        return _bytes_of(path / OUR_FILE if path.is_dir() else path), None
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise AdapterError(f"there is no adapter at {path}: {error}") from None


def _bytes_of(file: Path) -> bytes:
    if not file.is_file():  # a pipe or a device might have no end
        raise FileNotFoundError(f"{file} is no file")
    return file.read_bytes()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"lora_weights isn't base64: {error}", "lora_weights") from None


def _number(metadata: dict[str, str], key: str, default: float) -> float:
    try:
        return float(metadata.get(key, default))
    except ValueError:
        raise AdapterError(f"the adapter's {key} is {metadata[key]!r}, which is no number") from None


def _card(model: ServedModel, context_length: int | None) -> answers.ModelCard:
    return answers.ModelCard(
        id=model.name,
        created=model.created,
        root=model.root,
        parent=model.parent,
        max_model_len=context_length,
        policy_version=model.version,
    )
