"""What a run says about its loss reaches the gradient: denominators, the base model, the entropy, and no rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.lora import LoRASettings, adapter_off
from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import PolicySpan, TrainingRecord

SETTINGS = TrainerSettings(lr=1e-2, lora=LoRASettings(rank=4))
PROMPT = [3, 1, 4, 1, 5]


def distributions(trainer: Trainer, record: TrainingRecord) -> np.ndarray:
    """log softmax over the vocabulary at each token of the completion, in float64, by the full forward pass."""
    logits = np.array(trainer.model(mx.array([record.input_ids])))[0].astype(np.float64)
    scaled = logits[len(record.prompt_token_ids) - 1 : -1] / record.temperature
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def logprobs(trainer: Trainer, record: TrainingRecord) -> np.ndarray:
    return np.take_along_axis(
        distributions(trainer, record), np.array(record.completion_token_ids)[:, None], axis=1
    )[:, 0]


def as_sampled(trainer: Trainer, record: TrainingRecord, wrong_by: float = 0.0) -> TrainingRecord:
    """``record`` as if the present policy had sampled it, with logprobs recorded that are off by ``wrong_by``."""
    span = PolicySpan(0, len(record.completion_token_ids), trainer.version)
    return replace(record, logprobs=tuple((logprobs(trainer, record) + wrong_by).tolist()), spans=(span,))


def moved(tiny, settings: TrainerSettings, record) -> Trainer:
    """A trainer whose adapter has left the base model."""
    trainer = Trainer(tiny, settings)
    for _ in range(3):
        trainer.train_step([as_sampled(trainer, record("moves", PROMPT, [9, 2, 6]))])
    return trainer


def with_loss(**settings: object) -> TrainerSettings:
    return replace(SETTINGS, loss=LossSettings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [10_000, 12])
@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        # At a ratio of 1 a token's loss is -A: 3 tokens with A = 1 and 1 with A = -2.
        ({}, -(3 * 1 - 2) / 4),
        ({"normalization": "sequence"}, -(1 - 2) / 2),
        ({"loss": "dr_grpo", "max_tokens": 8}, -(3 * 1 - 2) / (2 * 8)),
        ({"role_weights": {"Proposer": 0.5}}, -(1.0 + 0.5 * -2)),
    ],
)
def test_denominators_are_the_whole_steps(tiny, record, settings, loss, budget):
    trainer = Trainer(tiny, replace(with_loss(**settings), micro_token_budget=budget))
    records = [
        as_sampled(trainer, record("a", PROMPT, [9, 2, 6])),
        as_sampled(trainer, replace(record("b", [2, 7], [8], advantage=-2.0), role_id="Proposer")),
        record("c", PROMPT, [1, 2], advantage=0.0),  # counts in none
    ]
    assert len(plan_step(records, budget, 50).batches) == (1 if budget > 12 else 2)
    assert trainer.train_step(records).loss == pytest.approx(loss, abs=1e-6)


def test_the_reference_is_the_base_model(tiny, record):
    trainer = moved(tiny, with_loss(kl_coefficient=0.1), record)
    one = as_sampled(trainer, record("a", PROMPT, [5, 3, 5]))
    with adapter_off(trainer.model):
        base = logprobs(trainer, one)
    difference = logprobs(trainer, one) - base
    metrics = trainer.train_step([one])
    k3 = np.exp(-difference) - 1 + difference
    assert np.abs(difference).max() > 0.01
    assert metrics.reference_kl == pytest.approx(k3.mean(), rel=1e-3)
    # -A, and 0.1 · d²/2 with a ratio of 1
    assert metrics.loss == pytest.approx(-1 + 0.1 * (difference**2 / 2).mean(), rel=1e-4)


def test_a_kl_term_pulls_back_where_there_is_no_advantage(tiny, record):
    trainer = moved(tiny, with_loss(kl_coefficient=1.0), record)
    still = record("a", PROMPT, [9, 2, 6], advantage=0.0)

    def distance() -> float:
        with adapter_off(trainer.model):
            base = logprobs(trainer, still)
        return float(np.abs(logprobs(trainer, still) - base).sum())

    before = distance()
    metrics = trainer.train_step([as_sampled(trainer, still)])
    assert (metrics.records, metrics.skipped_zero_advantage) == (1, 0)
    assert distance() < before


def test_without_a_kl_term_the_base_is_not_asked(tiny, record):
    trainer = moved(tiny, SETTINGS, record)
    metrics = trainer.train_step([as_sampled(trainer, record("a", PROMPT, [5]))])
    assert metrics.reference_kl is metrics.policy_entropy is None


def test_the_entropy_is_that_of_the_whole_distribution(tiny, record):
    trainer = moved(tiny, with_loss(entropy_coefficient=0.5), record)
    one = as_sampled(trainer, record("a", PROMPT, [5, 3, 5], temperature=0.7))
    every = distributions(trainer, one)
    entropy = -(np.exp(every) * every).sum(axis=1).mean()
    metrics = trainer.train_step([one])
    assert metrics.policy_entropy == pytest.approx(entropy, rel=1e-4)
    assert metrics.loss == pytest.approx(-1 - 0.5 * entropy, rel=1e-4)


def test_turning_the_adapter_off_gives_it_back_as_it_was(tiny, record):
    trainer = moved(tiny, SETTINGS, record)
    one = record("a", PROMPT, [5, 3, 5])
    before = logprobs(trainer, one)
    with adapter_off(trainer.model):
        assert np.abs(logprobs(trainer, one) - before).max() > 0.01
    np.testing.assert_array_equal(logprobs(trainer, one), before)


def after_a_step(tiny, record, wrong_by: float) -> tuple[dict[str, np.ndarray], float | None, float | None]:
    trainer = moved(tiny, SETTINGS, record)
    one = as_sampled(trainer, record("a", PROMPT, [5, 3, 5], advantage=0.7), wrong_by)
    metrics = trainer.train_step([one])
    return trainer.adapter(), metrics.ratio_lag0, metrics.mismatch_kl


def test_a_samplers_rounding_leaves_no_trace_but_is_told(tiny, record):
    adapter, _, _ = after_a_step(tiny, record, 0.0)
    rounded, ratio, mismatch = after_a_step(tiny, record, 1e-5)
    assert all(np.array_equal(adapter[name], rounded[name]) for name in adapter)
    assert ratio == pytest.approx(1e-5, rel=0.5)
    assert mismatch == 0
    differs, ratio, mismatch = after_a_step(
        tiny, record, -0.3
    )  # no rounding, and it must bear on the gradient
    assert any(not np.array_equal(adapter[name], differs[name]) for name in adapter)
    assert ratio == pytest.approx(math.expm1(0.3), rel=1e-3)
    assert mismatch is not None
    assert mismatch > 0.01


def test_an_older_policys_logprobs_are_taken_as_they_are(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    old = as_sampled(trainer, record("a", PROMPT, [5, 3, 5]), wrong_by=5e-4)
    trainer.train_step([])
    assert trainer.train_step([old]).ratio_mean == pytest.approx(math.exp(-5e-4), abs=1e-5)


def test_the_learning_rate_warms_up_and_decays(tiny, record):
    settings = replace(SETTINGS, lr=1e-2, warmup_steps=2, lr_decay="linear", num_steps=4, lr_final=0.5)
    trainer = Trainer(tiny, settings)
    rates = [
        trainer.train_step([as_sampled(trainer, record("a", PROMPT, [5, 3]))]).lr
        for _ in range(settings.num_steps)
    ]
    np.testing.assert_allclose(rates, [5e-3, 1e-2, 1e-2, 7.5e-3], rtol=1e-5)


def test_settings_that_contradict_each_other_are_refused(tiny):
    with pytest.raises(ConfigError, match="bounds nothing"):
        Trainer(tiny, with_loss(loss="reinforce", clip_high=0.1))
    with pytest.raises(ConfigError, match="can't decay"):
        Trainer(tiny, replace(SETTINGS, lr_decay="cosine", warmup_steps=5, num_steps=5))
