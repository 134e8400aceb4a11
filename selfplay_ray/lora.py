"""The weights that are trained: an adapter's, low-rank ones beside every linear layer of a frozen model, or with a
rank of 0 all of the model's own; their way in, out and to disk.

LoRA (Hu et al. 2021, arXiv:2106.09685, eq. 3): h = W x + scale · B A x, W frozen, A random, B zero at first.
Adapter weights travel as numpy arrays, keyed by the parameter's path in the model,
``model.layers.0.self_attn.q_proj.lora_a``: MLX arrays are bound to the thread that made them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from selfplay_ray.errors import AdapterError, ConfigError

LINEAR_LAYERS = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
QUANTIZED_LAYERS = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """``rank`` of the adapter, ``scale`` on its product, ``layers`` that carry it (from the last; -1: all).

    Rank 0 is no adapter: all weights of the model are trained in its place, in full precision.

    Raises:
        ConfigError: a rank below 0, a scale that isn't positive, or no layers at all.
    """

    rank: int = 8
    scale: float = 4.0
    layers: int = -1

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(
                f"a LoRA rank of {self.rank} is none; it must be at least 1, or 0 to train all weights"
            )
        if not self.scale > 0:
            raise ConfigError(f"a LoRA scale of {self.scale} switches the adapter off; it must be above 0")
        if self.layers == 0 or self.layers < -1:
            raise ConfigError(f"LoRA on {self.layers} layers trains nothing; give 1 or more, or -1 for all")


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """What ``load_adapter`` found in a file."""

    weights: dict[str, np.ndarray]
    settings: LoRASettings
    version: int


def attach_lora(model: nn.Module, settings: LoRASettings, seed: int) -> None:
    """Freeze ``model`` and put an adapter beside every linear layer of its last ``settings.layers`` blocks.

    Works for plain and quantized layers. A is uniform in ±1/√inputs, drawn from ``seed`` alone, B is zero, so
    that the model computes what it did before; this thread's random state is left as it was. Of rank 0 it is nothing,
    and the model is neither frozen nor computes in less than float32.

    Raises:
        AdapterError: the model carries an adapter already, has no linear layer to put one on, or is quantized and of
            rank 0.
    """
    if any("lora_a" in module for module in model.modules()):
        raise AdapterError("the model carries an adapter already; load it afresh to attach another")
    if settings.rank == 0:
        _train_all_weights(model)
        return
    keys = _linear_layer_names(model)
    if not keys:
        raise AdapterError(f"{type(model).__name__} has no linear layer in its blocks to put an adapter on")
    layers = len(model.layers) if settings.layers == -1 else min(settings.layers, len(model.layers))
    config = {"rank": settings.rank, "scale": settings.scale, "dropout": 0.0, "keys": keys}
    model.freeze()
    with _own_random_state(seed):
        linear_to_lora_layers(model, layers, config)
        mx.eval(model.trainable_parameters())


def read_adapter(model: nn.Module) -> dict[str, np.ndarray]:
    """Copy the adapter out of the model, float32, by parameter path; all weights of a model without one."""
    return {name: np.array(value.astype(mx.float32)) for name, value in _policy_parameters(model).items()}


def check_adapter(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Raise AdapterError, in one sentence, unless ``weights`` are exactly what ``write_adapter`` may set."""
    check_shapes({name: value.shape for name, value in _policy_parameters(model).items()}, weights)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, np.ndarray]) -> None:
    """Raise AdapterError unless ``weights`` have exactly these names and shapes, and finite numbers in them."""
    if not shapes:
        raise AdapterError("the model carries no adapter; attach one with attach_lora first")
    if unknown := sorted(weights.keys() - shapes.keys()):
        raise AdapterError(f"the model has no adapter weight {unknown[0]!r} ({len(unknown)} unknown in all)")
    if missing := sorted(shapes.keys() - weights.keys()):
        raise AdapterError(f"the adapter lacks {missing[0]!r} ({len(missing)} weights missing in all)")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise AdapterError(
                f"adapter weight {name!r} has shape {weights[name].shape} where the model takes "
                f"{shape}; rank and layers must be those it was attached with"
            )
        if not np.isfinite(weights[name]).all():
            raise AdapterError(f"adapter weight {name!r} holds numbers that are not finite")


def write_adapter(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Set the adapter of ``model``; all of it or, raising AdapterError, nothing.

    Call it in the thread that owns the model.
    """
    check_adapter(model, weights)
    parameters = _policy_parameters(model)
    arrays = [(name, mx.array(weights[name], dtype=old.dtype)) for name, old in parameters.items()]
    mx.eval([array for _, array in arrays])
    model.update(tree_unflatten(arrays))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute what it would without its adapter; whatever is computed must be evaluated inside."""
    layers = [module for module in model.modules() if "lora_a" in module]
    scales = [layer.scale for layer in layers]
    for layer in layers:
        layer.scale = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


def save_adapter(path: Path, weights: Mapping[str, np.ndarray], settings: LoRASettings, version: int) -> None:
    """Write the adapter as safetensors, atomically; settings and version go into its metadata.

    Raises:
        AdapterError: it can't be written; nothing of it is left, and the one before is untouched.
    """
    metadata = {
        "format": "mlx",
        "rank": str(settings.rank),
        "scale": repr(settings.scale),
        "layers": str(settings.layers),
        "version": str(version),
    }
    # mlx appends the suffix to a name without it, so the temporary one must have it too.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished.safetensors")
    try:
        mx.save_safetensors(
            str(unfinished), {name: mx.array(value) for name, value in weights.items()}, metadata
        )
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # the latter is MLX's word for a full disk
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterError(
            f"can't write {path}: {reason}; check that it may be written and that there is space"
        ) from error
    finally:
        with suppress(OSError):  # there is none, if all went well
            unfinished.unlink()


def load_adapter(path: Path) -> SavedAdapter:
    """Read what ``save_adapter`` wrote.

    Raises:
        AdapterError: there is no such file, it is torn, or it isn't one of ours.
    """
    if not path.is_file():
        raise AdapterError(f"there is no adapter at {path}")
    try:
        loaded = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = cast("tuple[dict[str, mx.array], dict[str, str]]", loaded)
        settings = LoRASettings(int(metadata["rank"]), float(metadata["scale"]), int(metadata["layers"]))
        weights = {name: np.array(value.astype(mx.float32)) for name, value in arrays.items()}
        return SavedAdapter(weights, settings, int(metadata["version"]))
    except (RuntimeError, KeyError, ValueError) as error:
        raise AdapterError(f"{path} is no adapter saved by selfplay-ray, or is torn: {error}") from error


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer is."""
    return any(isinstance(module, QUANTIZED_LAYERS) for module in model.modules())


def arrays_by_path(tree: Mapping[str, object]) -> dict[str, mx.array]:
    """The leaves of a nest of parameters, gradients or optimizer state, by dotted path, in its order."""
    return cast("dict[str, mx.array]", tree_flatten(tree, destination={}))


def _train_all_weights(model: nn.Module) -> None:
    if is_quantized(model):
        raise AdapterError(
            f"{type(model).__name__} is quantized, and such weights can't be trained; train an adapter on them (a LoRA "
            "rank of 1 or more), or take a model that isn't"
        )
    model.set_dtype(mx.float32)


def _policy_parameters(model: nn.Module) -> dict[str, mx.array]:
    """What is trained, by path, in the model's order."""
    return arrays_by_path(model.trainable_parameters())


def _linear_layer_names(model: nn.Module) -> set[str]:
    """Paths, relative to a block, of the linear layers in any of the model's blocks."""
    return {
        name
        for block in model.layers
        for name, module in block.named_modules()
        if isinstance(module, LINEAR_LAYERS)
    }


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Let mlx-lm draw from ``seed``, and give this thread's random state back as it was."""
    high, low = np.array(cast("list[mx.array]", mx.random.state)[0]).tolist()
    mx.random.seed(seed)
    try:
        yield
    finally:
        # The state can be read but not set; a key, though, is the two halves of the seed it was made from.
        mx.random.seed((high << 32) | low)
