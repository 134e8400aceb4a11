"""The compiled forward pass is mlx-lm's, for every kind of model it accepts, and a row's is its own in any crowd."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import threading
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import gemma, llama, qwen2, qwen3
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import quantize_model

from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.cpu import llama as llama_on_cpu
from selfplay_ray.inference.cpu.attention import ROTATIONS
from selfplay_ray.inference.cpu.cores import Cores
from selfplay_ray.inference.cpu.kv_cache import BatchKV, SequenceKV
from selfplay_ray.inference.cpu.llama import CompiledLlama, accepts
from selfplay_ray.lora import LoRASettings

WITHIN = 2e-5
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 200,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "llama": (llama, {"model_type": "llama"}),
    "llama, a head of its own": (llama, {"model_type": "llama", "tie_word_embeddings": False}),
    "llama, biases": (llama, {"model_type": "llama", "attention_bias": True, "mlp_bias": True}),
    "llama, one query head a key head": (llama, {"model_type": "llama", "num_key_value_heads": 4}),
    "llama, other heads": (llama, {"model_type": "llama", "head_dim": 32}),
    "llama, widths of no 16": (llama, {"model_type": "llama", "hidden_size": 72, "intermediate_size": 90}),
    "llama, smaller than any tile": (llama, {"model_type": "llama", "intermediate_size": 7, "vocab_size": 5}),
    "llama 3's rope": (llama, {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "positions scaled": (llama, {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "qwen2": (qwen2, {"model_type": "qwen2", "rope_theta": 1e6}),
    "qwen3": (
        qwen3,
        {"model_type": "qwen3", "rope_theta": 1e6, "head_dim": 32, "tie_word_embeddings": True},
    ),
}


def made(module: ModuleType, config: dict[str, Any]) -> nn.Module:
    """A model of random weights, biases and norms too."""
    model: nn.Module = module.Model(module.ModelArgs.from_dict({**SIZES, **config}))
    for layer in model.layers:
        if "q_norm" in layer.self_attn:
            layer.self_attn.q_norm.eps = layer.self_attn.k_norm.eps = 0.1  # not that of the other norms
    rng = np.random.default_rng(0)
    weights = [
        (name, mx.array(rng.standard_normal(array.shape, dtype=np.float32) / np.sqrt(array.shape[-1])))
        for name, array in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    return model


def logprobs(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    normalized: np.ndarray = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return normalized


def by_mlx(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Logprobs [T, V] of one sequence."""
    return logprobs(np.array(model(mx.array(tokens[None]), cache=make_prompt_cache(model))[0]))


def empty(ours: CompiledLlama, rows: int) -> BatchKV:
    return BatchKV.of([SequenceKV.new(ours.depth, ours.heads, ours.width) for _ in range(rows)])


def texts(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, SIZES["vocab_size"], (rows, length))


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_mlx_lm_does(kind: str, cores: Cores) -> None:
    model = made(*KINDS[kind])
    assert accepts(model)
    ours, tokens = CompiledLlama(model, cores), texts(5, 70) % model.args.vocab_size
    wanted = np.stack([by_mlx(model, row) for row in tokens])
    kv, at = empty(ours, 5), 0
    for count in (1, 50, 12, 1, 1, 5):  # more than one at once, across the room there is, one, and more again
        some = tokens[:, at : at + count]
        last = ours.logits(ours.run(some.tolist(), kv))
        at += count
        assert np.abs(logprobs(last) - wanted[:, at - 1]).max() < WITHIN


def test_rows_of_different_lengths_are_as_alone(cores: Cores) -> None:
    model = made(*KINDS["llama"])
    ours, tokens, lengths = CompiledLlama(model, cores), texts(4, 260), [0, 0, 0, 0]
    kv = empty(ours, 4)
    for counts in ([3, 170, 9, 1], [100, 1, 2, 70]):
        some = [row[at : at + count].tolist() for row, at, count in zip(tokens, lengths, counts, strict=True)]
        lengths = [at + count for at, count in zip(lengths, counts, strict=True)]
        last = logprobs(ours.logits(ours.run(some, kv)))
        for row, length in enumerate(lengths):
            assert np.abs(last[row] - by_mlx(model, tokens[row, :length])[-1]).max() < WITHIN
    for step in range(8):
        if step == 5:  # one leaves, and who is left is not where it was
            kv.filter([1, 2, 3])
            tokens, lengths = tokens[1:], lengths[1:]
        now = np.array([row[length + step] for row, length in zip(tokens, lengths, strict=True)])
        last = logprobs(ours.logits(ours.run(now[:, None], kv)))
        for row, length in enumerate(lengths):
            wanted = by_mlx(model, tokens[row, : length + step + 1])[-1]
            assert np.abs(last[row] - wanted).max() < WITHIN


def test_positions_beyond_the_first_table_of_rotations(cores: Cores) -> None:
    model = made(*KINDS["llama"])
    ours, tokens = CompiledLlama(model, cores), texts(1, ROTATIONS + 5)
    last = logprobs(ours.logits(ours.run(tokens.tolist(), empty(ours, 1))))
    assert np.abs(last[0] - by_mlx(model, tokens[0])[-1]).max() < WITHIN


def test_a_row_is_the_same_to_the_last_bit_in_any_crowd(cores: Cores) -> None:
    ours, tokens = CompiledLlama(made(*KINDS["llama"]), cores), texts(9, 40)

    def last(rows: slice) -> np.ndarray:
        some = tokens[rows]
        kv = empty(ours, len(some))
        return np.stack([ours.logits(ours.run(some[:, [step]], kv)) for step in range(40)], axis=1)

    crowd = last(slice(0, 9))
    for rows in (slice(4, 5), slice(3, 6), slice(4, 9)):
        assert (last(rows) == crowd[rows]).all()


@pytest.mark.parametrize("kind", ["llama", "llama, widths of no 16", "qwen2", "qwen3"])
def test_however_a_row_is_run_it_is_the_same_to_the_last_bit(kind: str, cores: Cores) -> None:
    """Whole, in pieces or token by token; alone or beside others; in one thread or several."""
    model, tokens = made(*KINDS[kind]), texts(20, 150)
    alone = Cores(1)
    ours, by_one = CompiledLlama(model, cores), CompiledLlama(model, alone)
    wanted = by_one.logits(by_one.run(tokens[:1].tolist(), empty(by_one, 1)))[0].copy()
    for counts in ([150], [1] * 150, [2] * 75, [3] * 50, [17, 64, 1, 68]):
        for model_, rows in ((by_one, 1), (ours, 1), (ours, 2), (ours, 20)):
            if rows > 1 and len(counts) == 150:
                continue
            kv, at = empty(model_, rows), 0
            for count in counts:
                last = model_.run(tokens[:rows, at : at + count], kv)
                at += count
            assert (model_.logits(last)[0] == wanted).all()
    alone.close()


def test_also_a_wide_row_is_the_same_in_company() -> None:
    sizes = {"hidden_size": 12288, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = made(llama, {"model_type": "llama", "num_hidden_layers": 1, "intermediate_size": 7, **sizes})
    ours, tokens = CompiledLlama(model, Cores(1)), texts(12, 2)
    together = ours.run(tokens.tolist(), empty(ours, 12))
    for row, state in enumerate(together):
        assert (ours.run(tokens[row : row + 1].tolist(), empty(ours, 1))[0] == state).all()


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_what_a_token_overflows_to_reaches_none_before_it(key_heads: int, cores: Cores) -> None:
    """Another sequence may go on from there."""
    model = made(llama, {"model_type": "llama", "num_key_value_heads": key_heads})
    embedding = np.array(model.model.embed_tokens.weight)
    embedding[7] = np.inf
    model.model.embed_tokens.weight = mx.array(embedding)
    ours, tokens = CompiledLlama(model, cores), np.arange(20, 43)[None]
    kept = []
    for last in (8, 7):
        kv = empty(ours, 1)
        ours.run(np.append(tokens, [[last]], axis=1).tolist(), kv)
        kept.append(kv.extract(0))
    fine, overflown = (kv.keys[..., :23, :] for kv in kept)
    assert (fine == overflown).all()
    assert np.isnan(kept[1].keys[1:, :, 23]).all()


@pytest.mark.parametrize("name", ["core-1", "MainThread"])
def test_a_thread_that_fails_is_waited_for_by_none(
    name: str, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, tokens, run_layers = (
        CompiledLlama(made(*KINDS["llama"]), cores),
        texts(3, 40),
        llama_on_cpu.run_layers,
    )
    wanted = ours.run(tokens.tolist(), empty(ours, 3)).copy()

    def failing(*given: Any) -> None:
        if threading.current_thread().name == name:
            raise OSError("nothing can be read from there")
        run_layers(*given)

    with monkeypatch.context() as patched:
        patched.setattr(llama_on_cpu, "run_layers", failing)
        with pytest.raises(OSError, match="nothing can be read"):
            ours.run(tokens.tolist(), empty(ours, 3))
    assert (ours.run(tokens.tolist(), empty(ours, 3)) == wanted).all()


@pytest.mark.parametrize("kind", ["llama", "llama, one query head a key head"])
def test_what_rows_have_in_common_is_read_once_and_comes_out_the_same(kind: str, cores: Cores) -> None:
    ours, tokens = CompiledLlama(made(*KINDS[kind]), cores), texts(9, 40)
    kv = empty(ours, 1)
    ours.run(texts(1, 150).tolist(), kv)
    prompt = kv.extract(0)
    forked = BatchKV.of([prompt] * 9)
    plain = [BatchKV.of([prompt]) for _ in range(9)]
    assert (forked.beginnings()[1] == 144).all()
    left = list(range(9))
    for step in range(40):
        if step == 20:  # others leave, and who is left is not where it was
            left = [1, 3, 4, 8]
            forked.filter(left)
            assert (forked.beginnings()[1] == 144).all()
        together = ours.run(tokens[left][:, [step]], forked)
        for row, state in zip(left, together, strict=True):
            assert (ours.run(tokens[[row]][:, [step]], plain[row]) == state).all()


@pytest.mark.parametrize("kind", ["llama", "llama, one query head a key head"])
@pytest.mark.parametrize("longer", [10, 77, 130, 700])
def test_a_row_is_the_same_to_the_last_bit_beside_a_longer_one(longer: int, kind: str, cores: Cores) -> None:
    ours, tokens = CompiledLlama(made(*KINDS[kind]), cores), texts(2, 90)
    alone, crowd = empty(ours, 1), empty(ours, 1)
    long = empty(ours, 1)
    ours.run(texts(1, longer).tolist(), long)
    for kv in (alone, crowd):
        ours.run(tokens[:1, :9].tolist(), kv)
    crowd.append([long.extract(0)])
    for step in range(9, 90):
        beside = ours.run(tokens[:, [step]], crowd)
        assert (ours.run(tokens[:1, [step]], alone) == beside[:1]).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_are_computed_with_it(mixed: bool, cores: Cores) -> None:
    model = made(*KINDS["qwen2"])
    adapters = Adapters(model, LoRASettings(), max_adapters=2)
    rng = np.random.default_rng(3)
    for name in ("one", "other"):
        weights = {
            path: rng.normal(0, 0.2, shape).astype(np.float32) for path, shape in adapters.shapes.items()
        }
        adapters.load(name, weights, 1)
    assert accepts(model)
    ours, tokens = CompiledLlama(model, cores), texts(3, 12)
    names = ["one", None, "other"] if mixed else ["one"] * 3
    rows = [adapters.find(name) for name in names]
    adapters.select([adapters.base, *rows])
    kv = empty(ours, 4)
    ours.run([text[:-1].tolist() for text in tokens[[0, 0, 1, 2]]], kv)
    kv.filter([1, 2, 3])  # and who is left is not where it was
    adapters.select(rows)
    last = logprobs(ours.logits(ours.run(tokens[:, -1:], kv)))
    for row, adapter in enumerate(rows):
        adapters.select([adapter])
        assert np.abs(last[row] - by_mlx(model, tokens[row])[-1]).max() < WITHIN
    adapters.select([adapters.base])
    plain = logprobs(ours.logits(ours.run(tokens[:1].tolist(), empty(ours, 1))))
    assert np.abs(plain[0] - by_mlx(model, tokens[0])[-1]).max() < WITHIN
    assert np.abs(plain[0] - last[0]).max() > 100 * WITHIN  # they do something


def test_with_its_adapter_a_row_is_the_same_to_the_last_bit_in_any_crowd(cores: Cores) -> None:
    model, rng = made(*KINDS["qwen2"]), np.random.default_rng(3)
    adapters = Adapters(model, LoRASettings(rank=6), max_adapters=3)
    for name in ("one", "two", "three"):
        weights = {p: rng.normal(0, 0.2, shape).astype(np.float32) for p, shape in adapters.shapes.items()}
        adapters.load(name, weights, 1)
    ours, tokens = CompiledLlama(model, cores), texts(40, 30)
    names = ["one", "two", None, "three"] * 10

    def last(rows: list[int]) -> np.ndarray:
        adapters.select([adapters.find(names[row]) for row in rows])
        kv = empty(ours, len(rows))
        ours.run([tokens[row, row % 5 : 20] for row in rows], kv)
        for step in range(20, 30):
            hidden = ours.run(tokens[rows, step : step + 1], kv)
        return ours.logits(hidden).copy()

    crowd = last([*range(40)])
    for some in (
        [0],
        [1],
        [2],
        [0, 4],
        [0, 1],
        [0, 1, 2, 3, 7],
        [5, 2, 19],
        [*range(39, 0, -2)],
        [*range(1, 21)],
    ):
        assert (last(some) == crowd[some]).all()


@pytest.mark.parametrize("selected", [2, 18, 40])
def test_adapters_of_another_number_of_rows_are_refused(selected: int, cores: Cores) -> None:
    model = made(*KINDS["llama"])
    adapters = Adapters(model, LoRASettings(), max_adapters=2)
    for name in ("one", "other"):
        adapters.load(name, {path: np.ones(shape) for path, shape in adapters.shapes.items()}, 1)
    adapters.select([adapters.find("one"), adapters.find("other")] * (selected // 2))
    ours = CompiledLlama(model, cores)
    with pytest.raises(ValueError, match=f"selected for {selected} rows, and 20 are run"):
        ours.run(texts(20, 5), empty(ours, 20))


def test_other_models_are_left_to_mlx() -> None:
    base = KINDS["llama"][1]
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    assert not accepts(made(llama, {**base, **sliding}))
    assert not accepts(made(llama, {**base, "rope_traditional": True}))
    assert not accepts(made(gemma, {"model_type": "gemma", "head_dim": 16}))
    half = made(llama, base)
    half.set_dtype(mx.bfloat16)
    assert not accepts(half)
    assert not accepts(quantize_model(made(llama, base), {}, group_size=32, bits=4)[0])
