"""A made-up llama that loads in no time, with the tokenizer of SmolLM2: for tests of what any model would show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from selfplay_ray.models import resolve_model

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_tiny_model(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    context: int = 1024,
    seed: int = 0,
) -> Path:
    """Write a model of random weights into ``folder``, which mlx-lm loads; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = resolve_model("smollm2-135m")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 49152,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
    }
    model = Model(ModelArgs.from_dict(config))
    architecture = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps({**config, **architecture}))
    rng = np.random.default_rng(seed)
    parameters = dict(tree_flatten(model.parameters()))
    weights = {name: mx.array(_weight(rng, name, value.shape)) for name, value in parameters.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "norm" in name:
        return np.ones(shape, dtype=np.float32)
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
