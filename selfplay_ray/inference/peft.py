"""Adapters as PEFT writes them (and vLLM reads them), and as ours; no MLX, so that it can be done anywhere.

PEFT keeps ``lora_A.weight`` [r, in] and ``lora_B.weight`` [out, r] and adds ``lora_alpha / r`` times their product;
ours are their transposes ``lora_a`` [in, r] and ``lora_b`` [r, out], with a ``scale``. A PEFT adapter may cover
fewer layers than the model's own, and have a smaller rank: what it lacks is zero, which changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from selfplay_ray.atomic_folder import new_folder
from selfplay_ray.errors import AdapterError

Weights = Mapping[str, np.ndarray]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
OUR_NAME = re.compile(r"(?P<path>.+)\.lora_(?P<half>[ab])")
PEFT_NAME = re.compile(r"(?P<path>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
CHANGES_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Ways of PEFT's to initialize an adapter that alter the model's own weights, which are then other ones than here."""
NOT_PLAIN = {
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
}
"""Settings of PEFT's that make an adapter compute something else, or more, than B A x."""
NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


class PeftConfig(BaseModel):
    """What of PEFT's ``adapter_config.json`` decides what the adapter computes."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    peft_type: Literal["LORA"] = "LORA"
    r: int
    lora_alpha: float
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    @property
    def scale(self) -> float:
        """The factor on B A x: alpha / r, or alpha / √r for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def check(self) -> None:
        """Raise AdapterError if it asks for something that a plain LoRA isn't."""
        if self.r < 1 or not self.lora_alpha > 0:
            raise AdapterError(
                f"the adapter has r={self.r} and lora_alpha={self.lora_alpha}; both must be above 0"
            )
        asked = {name: bool(value) for name, value in (self.model_extra or {}).items() if name in NOT_PLAIN}
        asked["bias"] = self.bias != "none"
        asked["init_lora_weights"] = str(self.init_lora_weights).startswith(CHANGES_THE_BASE)
        if unsupported := [name for name, is_set in asked.items() if is_set]:
            raise AdapterError(
                f"the adapter uses PEFT's {', '.join(unsupported)}, which is no plain LoRA and can't be computed"
            )


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The adapter that a model carries: every weight's shape by our name, and the factor on the product."""

    shapes: Mapping[str, tuple[int, ...]]
    scale: float

    @property
    def rank(self) -> int:
        return next((shape[-1] for name, shape in self.shapes.items() if name.endswith(".lora_a")), 0)


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in ``data`` as float32, by name.

    Raises:
        AdapterError: it isn't safetensors, or holds numbers of a type that no adapter has.
    """
    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise AdapterError(f"the adapter's weights aren't safetensors: {error}") from None
    return {
        name: _as_float32(name, tensor["dtype"], tensor["shape"], tensor["data"]) for name, tensor in tensors
    }


def read_metadata(data: bytes) -> dict[str, str]:
    """The ``__metadata__`` of safetensors that ``read_safetensors`` has read."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    return metadata


def read_peft_config(data: str | bytes) -> PeftConfig:
    """Raises AdapterError unless ``data`` is the configuration of an adapter that can be computed."""
    try:
        config = PeftConfig.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or CONFIG_FILE
        raise AdapterError(f"the adapter's configuration is wrong: {key}: {problem['msg']}") from None
    config.check()
    return config


def is_peft(weights: Weights) -> bool:
    return any(PEFT_NAME.fullmatch(name) for name in weights)


def read_peft(folder: Path) -> tuple[dict[str, np.ndarray], PeftConfig]:
    """The weights, under PEFT's names, and the configuration in a folder of PEFT's.

    Raises:
        AdapterError: it holds no adapter, or one that can't be read or computed.
    """
    try:
        config = read_peft_config((folder / CONFIG_FILE).read_bytes())
        return read_safetensors((folder / WEIGHTS_FILE).read_bytes()), config
    except OSError as error:
        if (folder / PICKLED_FILE).exists():
            raise AdapterError(
                f"the adapter in {folder} is pickled, and may run code when read; save it with safe_serialization=True"
            ) from None
        raise AdapterError(f"there is no adapter in {folder}: {error}") from None


def from_peft(
    weights: Weights, config: PeftConfig, shape: AdapterShape, fresh: Weights | None = None
) -> dict[str, np.ndarray]:
    """PEFT's weights as those of an adapter of ``shape`` that computes the same.

    Args:
        fresh: a new adapter of ``shape``, its A random and its B zero, from which layers and ranks that ``weights``
            lack are taken. Without it both halves are zero there: enough to compute with, but their gradients
            would be zero for ever.

    Raises:
        AdapterError: a name or a shape doesn't fit the model, half of a pair is missing, the rank is too large.
    """
    if config.r > shape.rank:
        raise AdapterError(
            f"the adapter has rank {config.r}, and there is only room for {shape.rank}; ask for a LoRA rank of "
            f"{config.r} or more"
        )
    found = {_our_name(name, shape): value for name, value in weights.items()}
    for name in found:
        other = name[:-1] + ("b" if name.endswith("a") else "a")
        if other not in found:
            raise AdapterError(f"the adapter has {name!r} without {other!r}")
    factor = np.float32(config.scale / shape.scale)
    adapter = {
        name: np.zeros(size, np.float32) if fresh is None else np.array(fresh[name], np.float32)
        for name, size in shape.shapes.items()
    }
    for name, value in found.items():
        ours = value.T * (factor if name.endswith("b") else np.float32(1))
        adapter[name][_fitting(name, ours, config.r, adapter[name].shape)] = ours
    return adapter


def rescaled(weights: Weights, scale: float, shape: AdapterShape) -> dict[str, np.ndarray]:
    """Our weights that were trained with ``scale``, for an engine of ``shape``."""
    factor = np.float32(scale / shape.scale)
    return {n: value * factor if n.endswith(".lora_b") else np.asarray(value) for n, value in weights.items()}


def to_peft(weights: Weights) -> dict[str, np.ndarray]:
    """Our weights under PEFT's names, in PEFT's orientation."""
    named = {}
    for name, value in weights.items():
        match = OUR_NAME.fullmatch(name)
        if match is None:
            raise AdapterError(f"{name!r} is no weight of an adapter")
        if value.ndim != 2:
            raise AdapterError(
                f"PEFT has no format for adapters on the experts of a mixture, as {name!r} is one"
            )
        named[f"{PREFIX}{match['path']}.lora_{match['half'].upper()}.weight"] = np.ascontiguousarray(value.T)
    return named


def save_peft(folder: Path, weights: Weights, scale: float, base_model: str | None) -> None:
    """Write ``weights`` as a folder that PEFT and vLLM load; the folder appears whole or not at all.

    Raises:
        AdapterError: there are no weights, they have no form in PEFT, or the folder exists already: versions have
            names of their own.
        OSError: it can't be written.
    """
    named = to_peft(weights)
    if not named:
        raise AdapterError("there are no adapter weights to save")
    if folder.exists():
        raise AdapterError(f"{folder} exists already; an adapter is written once, under a name of its own")
    config = json.dumps(_peft_config(named, scale, base_model), indent=1)
    with new_folder(folder) as unfinished:
        (unfinished / WEIGHTS_FILE).write_bytes(save(named, metadata={"format": "pt"}))
        (unfinished / CONFIG_FILE).write_text(config, encoding="utf-8")


def _peft_config(named: Weights, scale: float, base_model: str | None) -> dict[str, object]:
    paths = [match["path"] for name in named if (match := PEFT_NAME.fullmatch(name))]
    rank = next(value.shape[0] for name, value in named.items() if name.endswith("lora_A.weight"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(scale * rank) if (scale * rank).is_integer() else scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({path.rpartition(".")[2] for path in paths}),
        "layers_to_transform": sorted(
            {int(n) for path in paths for n in re.findall(r"\.layers\.(\d+)\.", path)}
        ),
    }


def _our_name(name: str, shape: AdapterShape) -> str:
    match = PEFT_NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name!r} is not the name of a LoRA weight as PEFT writes it")
    ours = f"{match['path'].removeprefix(PREFIX)}.lora_{match['half'].lower()}"
    if ours not in shape.shapes:
        raise AdapterError(f"the model has no adapter weight {name!r}")
    return ours


def _fitting(name: str, value: np.ndarray, rank: int, into: tuple[int, ...]) -> tuple[slice, ...]:
    """Where ``value`` goes in an array of shape ``into``: everywhere, but for the ranks it lacks."""
    expected = (into[0], rank) if name.endswith("a") else (rank, into[1])
    if value.shape != expected:
        raise AdapterError(
            f"adapter weight {name!r} has shape {value.shape[::-1]} where the model takes {expected[::-1]}"
        )
    return tuple(slice(size) for size in expected)


def _as_float32(name: str, kind: str, shape: list[int], data: bytes) -> np.ndarray:
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in NUMPY_TYPES:
        raise AdapterError(f"adapter weight {name!r} is of type {kind}; it must be F32, F16, BF16 or F64")
    return np.frombuffer(data, NUMPY_TYPES[kind]).astype(np.float32).reshape(shape)
