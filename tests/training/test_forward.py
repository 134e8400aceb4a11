"""What is shared changes the cost of a gradient and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx import nn
from mlx_lm.models import gemma2, gpt2, granite, llama

from selfplay_ray.errors import TrainingError
from selfplay_ray.lora import LoRASettings, arrays_by_path, attach_lora, read_adapter, write_adapter
from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.models import load_model
from selfplay_ray.training import head, pages
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.forward import PlainForward, TreeForward, choose_forward
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.losses import make_objective
from selfplay_ray.training.page_cache import PageCache


def with_adapter(folder: Path, **settings) -> nn.Module:
    """The model with an adapter of noise: with B at zero, A would have no gradient to compare."""
    model, _ = load_model(folder)
    attach_lora(model, LoRASettings(**settings), seed=0)
    rng = np.random.default_rng(0)
    noise = {name: 0.02 * rng.normal(size=value.shape) for name, value in read_adapter(model).items()}
    write_adapter(model, noise)
    return model


def largest_relative_difference(ours, theirs):
    """Of a number, in units of its tensor's largest; where all of a tensor is next to 0, of the others'."""
    assert ours.keys() == theirs.keys()
    largest = {name: float(np.abs(np.array(value)).max()) for name, value in theirs.items()}
    rounding = 1e-3 * max(largest.values())
    return max(
        float(np.abs(np.array(ours[name]) - np.array(value)).max() / max(largest[name], rounding))
        for name, value in theirs.items()
    )


def scored(record, vocabulary, sequences):
    """Records of ``sequences``, pairs of prompt and completion, with all that differs between records drawn."""
    rng = np.random.default_rng(1)
    return [
        record(
            f"r{index}",
            prompt,
            completion,
            advantage=float(rng.normal()),
            logprobs=(-np.log(vocabulary) + 0.1 * rng.normal(size=len(completion))).tolist(),
            temperature=0.7 if index % 2 else 1.0,
        )
        for index, (prompt, completion) in enumerate(sequences)
    ]


def steps(vocabulary, scale):
    """What a step may look like, as pairs of prompt and completion; lengths in units of ``scale`` tokens."""
    rng = np.random.default_rng(2)

    def drawn(length):
        return rng.integers(0, vocabulary, length * scale).tolist()

    def conversation(told, turns):
        pairs = []
        for _ in range(turns):
            reply = drawn(2)
            pairs.append((told, reply))
            told = told + reply + drawn(1)
        return pairs

    prompt, system = drawn(6), drawn(3)
    branching = conversation(prompt, 2)
    told = [token for part in branching[-1] for token in part]
    return {
        "siblings": [(prompt, drawn(length)) for length in (1, 4, 3)],
        "conversation": conversation(prompt, 4),
        "both": [*branching, *conversation(told, 2), *conversation(told, 3)],
        "duplicates": [branching[0], branching[0], branching[1], (prompt, drawn(2))],
        "strangers": [pair for _ in range(3) for pair in conversation(system + drawn(2), 2)],
    }


def gradients(model, records, vocabulary, forward, budget=10_000):
    plan = plan_step(records, budget, vocabulary, shared=forward.shared)
    return plan, step_gradient(model, plan.batches, StepLoss(make_objective(LossSettings())), forward)


def assert_equal_gradients(model, records, vocabulary, budget=10_000):
    """The tree's gradient against that of every record run in full and by itself."""
    plan, ours = gradients(model, records, vocabulary, TreeForward(), budget)
    alone = [gradients(model, [one], vocabulary, PlainForward())[1] for one in records]
    total = {name: sum(np.array(one.gradients[name]) for one in alone) for name in ours.gradients}
    assert ours.loss == pytest.approx(sum(one.loss for one in alone), rel=1e-5, abs=1e-5)
    assert largest_relative_difference(ours.gradients, total) < 1e-4
    return plan


KINDS = ["siblings", "conversation", "both", "duplicates", "strangers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [10_000, 60])
def test_the_gradient_is_that_of_every_record_by_itself(tiny, record, kind, budget):
    model = with_adapter(tiny)
    plan = assert_equal_gradients(model, scored(record, 50, steps(50, 4)[kind]), 50, budget)
    assert (len(plan.batches) > 1) == (budget == 60 and kind not in ("conversation", "duplicates"))


@pytest.fixture(scope="module")
def smol(smollm2):
    return with_adapter(smollm2)


@pytest.mark.parametrize(("kind", "budget"), [("siblings", 1000), ("both", 1000), ("both", 48)])
def test_the_gradient_on_the_real_model(smol, record, kind, budget):
    plan = assert_equal_gradients(smol, scored(record, 49152, steps(49152, 3)[kind]), 49152, budget)
    assert (len(plan.batches) > 1) == (budget == 48)


@pytest.fixture(scope="module")
def small(tiny):
    return with_adapter(tiny)


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@settings(max_examples=40)
@given(
    sequences=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=8),
    budget=st.sampled_from([24, 10_000]),
    overhead=st.sampled_from([0, 64]),
)
def test_the_gradient_of_any_tree(small, record, sequences, budget, overhead):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PASS_OVERHEAD", overhead)  # at 0 every depth is a pass of its own
        # Tokens that differ first: where all are alike, so are their values, and queries and keys have no gradient.
        pairs = [([2, 3, 4, 5, *prompt], completion) for prompt, completion in sequences]
        assert_equal_gradients(small, scored(record, 50, pairs), 50, budget)


def test_logprobs_and_entropies_are_those_of_the_tempered_softmax(tiny, record):
    model = with_adapter(tiny)
    records = scored(record, 50, steps(50, 3)["siblings"])
    plan = plan_step(records, 10_000, 50)
    (batch,) = plan.batches
    found = TreeForward()(model, batch, entropies=True)
    constant = TreeForward(additive_mask=True)(model, batch, entropies=True, gradient=False)
    rows = {tuple(batch.targets[row][batch.mask[row]].tolist()): row for row in range(len(batch.mask))}
    for one in records:
        row = rows[one.completion_token_ids]
        logits = np.array(model(mx.array([one.input_ids])))[0].astype(np.float64) / one.temperature
        for place, token in enumerate(one.completion_token_ids):
            scores = logits[len(one.prompt_token_ids) - 1 + place]
            logprobs = scores - np.log(np.exp(scores).sum())
            for ours in (found, constant):
                assert ours.logprobs[row, place].item() == pytest.approx(logprobs[token], abs=1e-5)
                entropy = -(np.exp(logprobs) * logprobs).sum()
                assert ours.entropies[row, place].item() == pytest.approx(entropy, abs=1e-5)
    assert not np.array(found.logprobs)[~batch.mask].any()
    assert TreeForward()(model, batch).entropies is None


def test_the_gradient_of_an_entropy(tiny, record):
    """Taken on the way, like that of a logprob, by the tree; by autograd in the plain forward pass."""
    model = with_adapter(tiny)
    records = scored(record, 50, steps(50, 3)["both"])
    found = []
    for way in (TreeForward(), PlainForward()):
        plan = plan_step(records, 10_000, 50, shared=way.shared)

        def total(model: nn.Module, way=way, batches=plan.batches) -> mx.array:
            # Squared, so that the gradient that reaches the entropies differs from one to the next.
            return sum((way(model, batch, entropies=True).entropies ** 2).sum() for batch in batches)

        _, tree = nn.value_and_grad(model, total)(model)
        found.append(arrays_by_path(tree))
    assert largest_relative_difference(*found) < 1e-4


@pytest.mark.parametrize("trainable", [False, True])
def test_a_head_in_chunks_gives_the_same_gradient(tiny, record, monkeypatch, trainable):
    model = with_adapter(tiny)
    if trainable:
        model.lm_head.unfreeze()
    records = scored(record, 50, steps(50, 3)["both"])
    plain = gradients(model, records, 50, PlainForward())[1]
    monkeypatch.setattr(head, "HEAD_CHUNK", 4)
    chunked = gradients(model, records, 50, TreeForward())[1]
    assert ("lm_head.weight" in chunked.gradients) == trainable
    assert chunked.loss == pytest.approx(plain.loss, rel=1e-5)
    assert largest_relative_difference(chunked.gradients, plain.gradients) < 1e-4


def test_a_plain_pass_refuses_pages(tiny, record):
    plan = plan_step(scored(record, 50, steps(50, 3)["siblings"]), 10_000, 50)
    with pytest.raises(TrainingError, match="shared=False"):
        PlainForward()(with_adapter(tiny), plan.batches[0])


def test_a_sliding_window_is_refused():
    with pytest.raises(ValueError, match="sliding window"):
        PageCache().make_mask(2, window_size=2)


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


SMALL_PLAIN = {name: value for name, value in SMALL.items() if name != "head_dim"}


def test_a_plain_model_shares_its_prompts(tiny):
    assert choose_forward(load_model(tiny)[0]) == TreeForward(additive_mask=True)


def test_a_model_in_half_precision_shares_its_prompts_too(tiny):
    model, _ = load_model(tiny)
    model.set_dtype(mx.bfloat16)
    assert choose_forward(model) == TreeForward(additive_mask=False)


def test_a_model_that_scales_its_logits_is_run_in_full_and_says_so(caplog):
    scales = {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0}
    rest = {"residual_multiplier": 1.0, "max_position_embeddings": 64, "rope_theta": 1e4}
    biases = {"attention_bias": False, "mlp_bias": False}
    model = granite.Model(granite.ModelArgs(model_type="granite", **SMALL_PLAIN, **scales, **rest, **biases))
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) == PlainForward()
    assert "its logprobs would change by" in caplog.text


def test_a_model_that_masks_in_its_own_way_is_run_in_full_and_says_so(caplog):
    model = gemma2.Model(gemma2.ModelArgs(model_type="gemma2", **SMALL))
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) == PlainForward()
    assert "gemma2 does not take its context in pages" in caplog.text


def test_a_model_with_another_cache_is_run_in_full_and_says_so(caplog):
    layers = ["full_attention", "sliding_attention"]
    model = llama.Model(llama.ModelArgs(model_type="llama", layer_types=layers, sliding_window=4, **SMALL))
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) == PlainForward()
    assert "keeps its context in KVCache, RotatingKVCache" in caplog.text


def test_a_model_that_looks_positions_up_is_run_in_full_and_says_so(caplog):
    arguments = {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 50}
    model = gpt2.Model(gpt2.ModelArgs(model_type="gpt2", layer_norm_epsilon=1e-5, **arguments))
    with caplog.at_level(logging.WARNING):
        assert choose_forward(model) == PlainForward()
    assert "mlx_lm.models.gpt2" in caplog.text
