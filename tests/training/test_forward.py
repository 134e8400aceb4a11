"""The shared prompt changes the cost of a gradient and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import gemma2, llama

from selfplay_ray.lora import LoRASettings, attach_lora, read_adapter, write_adapter
from selfplay_ray.models import load_model
from selfplay_ray.training import forward
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.forward import choose_forward, plain_logprobs, shared_prefix_logprobs
from selfplay_ray.training.gradient import step_gradient
from selfplay_ray.training.loss import PPOClipLoss


def with_adapter(folder: Path, **settings) -> nn.Module:
    """The model with an adapter of noise: with B at zero, A would have no gradient to compare."""
    model, _ = load_model(folder)
    attach_lora(model, LoRASettings(**settings), seed=0)
    rng = np.random.default_rng(0)
    noise = {name: 0.02 * rng.normal(size=value.shape) for name, value in read_adapter(model).items()}
    write_adapter(model, noise)
    return model


def group(record, vocabulary, prompt, lengths):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, vocabulary, prompt).tolist()
    return [
        record(
            f"r{index}",
            tokens,
            rng.integers(0, vocabulary, length).tolist(),
            advantage=float(rng.normal()),
            logprobs=(-np.log(vocabulary) + 0.1 * rng.normal(size=length)).tolist(),
            temperature=0.7 if index % 2 else 1.0,
        )
        for index, length in enumerate(lengths)
    ]


def largest_relative_difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(
        float(np.abs(np.array(ours[name]) - np.array(value)).max() / np.abs(np.array(value)).max())
        for name, value in theirs.items()
    )


def gradients(model, records, vocabulary, compute):
    (batch,) = plan_step(records, 10_000, vocabulary).batches
    assert batch.prefix.size > 0
    return step_gradient(model, [batch], PPOClipLoss(), compute)


@pytest.mark.parametrize("lengths", [(4, 4), (1, 9, 5)])
def test_the_gradient_is_that_of_the_prompt_repeated(tiny, record, lengths):
    model = with_adapter(tiny)
    records = group(record, 50, 12, lengths)
    shared = gradients(model, records, 50, shared_prefix_logprobs)
    plain = gradients(model, records, 50, plain_logprobs)
    assert shared.loss == pytest.approx(plain.loss, rel=1e-5)
    assert largest_relative_difference(shared.gradients, plain.gradients) < 1e-4


def test_the_gradient_on_the_real_model(smollm2, record):
    model = with_adapter(smollm2)
    records = group(record, 49152, 24, (6, 8, 3))
    shared = gradients(model, records, 49152, shared_prefix_logprobs)
    plain = gradients(model, records, 49152, plain_logprobs)
    assert shared.loss == pytest.approx(plain.loss, rel=1e-5)
    assert largest_relative_difference(shared.gradients, plain.gradients) < 1e-4


def test_logprobs_are_those_of_the_tempered_softmax(tiny, record):
    model = with_adapter(tiny)
    records = group(record, 50, 5, (3, 3))
    (batch,) = plan_step(records, 10_000, 50).batches
    ours = np.array(shared_prefix_logprobs(model, batch))
    for row, one in enumerate(sorted(records, key=lambda r: r.id)):
        logits = np.array(model(mx.array([one.input_ids])))[0].astype(np.float64) / one.temperature
        for position in range(3):
            scores = logits[4 + position]
            expected = scores[one.completion_token_ids[position]] - np.log(np.exp(scores).sum())
            assert ours[row, position] == pytest.approx(expected, abs=1e-5)
    assert not ours[:, 3:].any()


def test_a_head_in_chunks_gives_the_same_gradient(tiny, record, monkeypatch):
    model = with_adapter(tiny)
    records = group(record, 50, 12, (8, 8, 5))
    whole = gradients(model, records, 50, shared_prefix_logprobs)
    monkeypatch.setattr(forward, "HEAD_CHUNK", 4)
    chunked = gradients(model, records, 50, shared_prefix_logprobs)
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-6)
    assert largest_relative_difference(chunked.gradients, whole.gradients) < 1e-5


def test_a_sliding_window_is_seen_through_the_prefix(record):
    """Not chosen for such models, but whoever passes a window gets one."""
    mask = forward.PrefixCache(mx.zeros((1, 1, 3, 4)), mx.zeros((1, 1, 3, 4))).make_mask(2, window_size=2)
    assert np.array(mask).tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "head_dim": 8,
}


def test_a_plain_model_shares_its_prompts(tiny):
    assert choose_forward(load_model(tiny)[0]) is shared_prefix_logprobs


def test_a_model_that_caps_its_logits_is_run_in_full_and_says_so(caplog):
    model = gemma2.Model(gemma2.ModelArgs(model_type="gemma2", **SMALL))
    model.model.embed_tokens.weight = model.model.embed_tokens.weight * 10  # logits far beyond the cap
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) is plain_logprobs
    assert "its logprobs would change by" in caplog.text


def test_a_model_with_another_cache_is_run_in_full_and_says_so(caplog):
    layers = ["full_attention", "sliding_attention"]
    model = llama.Model(llama.ModelArgs(model_type="llama", layer_types=layers, sliding_window=4, **SMALL))
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) is plain_logprobs
    assert "keeps its context in KVCache, RotatingKVCache" in caplog.text
