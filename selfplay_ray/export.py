"""What a run has trained, for other programs: a LoRA folder as PEFT writes it, or a whole model with the adapter in it.

vLLM and transformers with peft load the first beside the base model; mlx-lm, transformers and vLLM the second.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm import utils as mlx_lm
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from selfplay_ray.atomic_folder import new_folder
from selfplay_ray.errors import AdapterError, ConfigError, ModelError
from selfplay_ray.inference.peft import save_peft
from selfplay_ray.lora import SavedAdapter, attach_lora, is_quantized, write_adapter
from selfplay_ray.models import SMOLLM2, resolve_model

BESIDE_THE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
WRITTEN_ANEW = ("config.json", "model.safetensors.index.json")


def export_peft(adapter: SavedAdapter, out: Path, model: str | None = None) -> None:
    """Write ``adapter`` to the new folder ``out`` in PEFT's format; ``model`` is noted there as the base.

    Raises:
        ConfigError: ``out`` exists already.
        AdapterError: PEFT has no form for it: it is of experts, or all weights of a model.
        ModelError: ``out`` can't be written; nothing of it is left.
    """
    _check_new(out)
    if not adapter.settings.rank:
        raise AdapterError(
            "all weights of the model were trained, which no adapter holds; export the whole model"
        )
    base = None if model is None else _name_for_others(model)
    with _writing(out):
        save_peft(out, adapter.weights, adapter.settings.scale, base)


def export_fused(adapter: SavedAdapter, out: Path, model: str) -> None:
    """Write ``model`` with ``adapter`` added to its weights, W + scale · (A B)ᵀ, to the new folder ``out``.

    Weights keep the model's type. A quantized model is dequantized, in all its layers: quantizing the sum again
    would round most of the adapter away. Where all weights were trained (rank 0), they take the place of the model's.

    Raises:
        ConfigError: ``out`` exists already.
        AdapterError: the adapter doesn't fit the model.
        ModelError: there is no such model; or ``out`` can't be written, and nothing of it is left.
    """
    _check_new(out)
    folder = resolve_model(model)
    network, config = _load(folder)
    attach_lora(network, adapter.settings, seed=0)
    write_adapter(network, adapter.weights)
    _fuse(network)
    if is_quantized(network):
        network = mlx_lm.dequantize_model(network)
        config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    if not adapter.settings.rank:
        config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    with _writing(out), new_folder(out) as unfinished:
        _save(network, config, folder, unfinished)


def _fuse(model: nn.Module) -> None:
    """Put a plain layer in the place of each adapted one."""
    fused = [
        (path, module.fuse(dequantize=True))
        for path, module in model.named_modules()
        if isinstance(module, LoRALinear | LoRASwitchLinear)
    ]
    model.update_modules(tree_unflatten(fused))


def _load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """As it is on disk, weights read when they are written: unlike one to compute with (``models.load_model``)."""
    try:
        model, config = mlx_lm.load_model(folder, lazy=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the model in {folder} can't be loaded: {error}") from error
    return model, config


def _save(model: nn.Module, config: dict[str, Any], source: Path, folder: Path) -> None:
    """The weights and configuration of ``model``; whatever else is in ``source``, the tokenizer say, as it is."""
    mlx_lm.save_model(folder, model)
    mlx_lm.save_config(config, folder / "config.json")
    for pattern in BESIDE_THE_WEIGHTS:
        for file in source.glob(pattern):
            if file.name not in WRITTEN_ANEW:
                shutil.copyfile(file, folder / file.name)


def _name_for_others(model: str) -> str:
    """A model's folder where it has one here, for other programs know nothing of our names; else its hub id."""
    if model == SMOLLM2 or Path(model).exists():
        return str(resolve_model(model).absolute())
    return model


def _check_new(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; give a folder that isn't there yet")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into one sentence; MLX's word for that is RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(
            f"can't write {out}: {reason}; check that it may be written and that there is space"
        ) from error
