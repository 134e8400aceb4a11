"""Records to train on, and a model small enough to train in a blink."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from selfplay_ray.lora import arrays_by_path
from selfplay_ray.types import PolicySpan, TrainingRecord


def make_record(
    id: str,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    advantage: float = 1.0,
    logprobs: Sequence[float] | None = None,
    mask: Sequence[bool] | None = None,
    temperature: float = 1.0,
    spans: Sequence[PolicySpan] | None = None,
) -> TrainingRecord:
    length = len(completion)
    return TrainingRecord(
        id=id,
        role_id="Solver",
        rollout_id=id,
        episode_type="solve",
        prompt_token_ids=tuple(prompt),
        completion_token_ids=tuple(completion),
        logprobs=tuple(logprobs or [-1.0] * length),
        action_mask=tuple(mask or [True] * length),
        spans=tuple(spans or [PolicySpan(0, length, 0)]),
        temperature=temperature,
        reward=0.0,
        advantage=advantage,
    )


@pytest.fixture(scope="session")
def record() -> Callable[..., TrainingRecord]:
    """Makes a training record: ``record(id, prompt, completion, advantage=1.0, …)``."""
    return make_record


TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random llama of two layers, 32 wide, with an LM head of its own and 50 tokens."""
    return write_llama(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture(scope="session")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three layers."""
    return write_llama(tmp_path_factory.mktemp("deeper"), layers=3)


def write_llama(folder: Path, layers: int) -> Path:
    mx.random.seed(0)
    config = {**TINY, "num_hidden_layers": layers}
    weights = arrays_by_path(Model(ModelArgs.from_dict(config)).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(WordLevel({str(i): i for i in range(50)}, unk_token="0")).save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder
