"""Steps of the trainer: what they change, what they don't, what they report, and when they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import TrainingError
from selfplay_ray.lora import LoRASettings, arrays_by_path
from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.forward import PlainForward
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.losses import LossInputs, Objective, TokenLosses
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import PolicySpan, TrainingRecord

SETTINGS = TrainerSettings(lr=1e-2, lora=LoRASettings(rank=4))
PROMPT = [3, 1, 4, 1, 5]


def logprobs_of(trainer: Trainer, record: TrainingRecord) -> list[float]:
    """What a sampler with the trainer's weights would have recorded, by the model's full forward pass."""
    logits = np.array(trainer.model(mx.array([record.input_ids])))[0].astype(np.float64)
    scaled = logits[len(record.prompt_token_ids) - 1 : -1] / record.temperature
    normal = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return [float(row[token]) for row, token in zip(normal, record.completion_token_ids, strict=True)]


def as_sampled(trainer: Trainer, record: TrainingRecord) -> TrainingRecord:
    """``record`` as if the trainer's present policy had sampled it."""
    span = PolicySpan(0, len(record.completion_token_ids), trainer.version)
    return replace(record, logprobs=tuple(logprobs_of(trainer, record)), spans=(span,))


def batch(record) -> list[TrainingRecord]:
    """A group of three, one of another prompt, and one with nothing to learn."""
    return [
        record("a", PROMPT, [9, 2, 6], advantage=1.0),
        record("b", PROMPT, [5, 3, 5, 8, 9], advantage=-0.5),
        record("c", PROMPT, [7], advantage=0.25, temperature=0.5),
        record("d", [2, 7, 1, 8], [2, 8], advantage=-1.0),
        record("e", [2, 7], [1], advantage=0.0),
    ]


def test_settings_follow_the_configuration():
    config = RunConfig(lr=0.1, clip_low=0.3, lora_rank=2, lora_scale=3.0, lora_layers=1, seed=5, num_steps=7)
    settings = TrainerSettings.from_config(config)
    assert settings == TrainerSettings(
        lr=0.1, loss=LossSettings(clip_low=0.3), lora=LoRASettings(2, 3.0, 1), seed=5, num_steps=7
    )
    assert TrainerSettings.from_config(RunConfig()) == TrainerSettings()


def test_a_step_moves_the_adapter_and_leaves_the_base_alone(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    adapter = trainer.adapter()
    base = {k: np.array(v) for k, v in arrays_by_path(trainer.model.parameters()).items() if k not in adapter}
    for _ in range(3):
        trainer.train_step([as_sampled(trainer, one) for one in batch(record)])
    after = arrays_by_path(trainer.model.parameters())
    assert len(base) > 10
    for name, value in base.items():
        np.testing.assert_array_equal(np.array(after[name]), value)
    assert all(not np.array_equal(value, adapter[name]) for name, value in trainer.adapter().items())
    assert trainer.version == 3


def test_rewarded_completions_become_likelier(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    good, bad = record("good", PROMPT, [9, 2, 6]), record("bad", PROMPT, [5, 3, 5], advantage=-1.0)
    before = [sum(logprobs_of(trainer, one)) for one in (good, bad)]
    for _ in range(5):
        trainer.train_step([as_sampled(trainer, good), as_sampled(trainer, bad)])
    after = [sum(logprobs_of(trainer, one)) for one in (good, bad)]
    assert after[0] > before[0] + 0.5
    assert after[1] < before[1] - 0.5


def test_metrics_of_a_step_on_its_own_samples(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    records = [as_sampled(trainer, one) for one in batch(record)]
    metrics = trainer.train_step(records)
    logprobs = [logprob for one in records[:4] for logprob in one.logprobs]
    # Every ratio is 1, so each token's loss is -A: -(3·1 + 5·-0.5 + 1·0.25 + 2·-1) / 11 = 1.25 / 11
    assert metrics.loss == pytest.approx(1.25 / 11, rel=1e-4)
    assert (metrics.records, metrics.skipped_zero_advantage, metrics.tokens_trained) == (4, 1, 11)
    # Pages of 8: the shared prompt, two completions that go on after their first token, and the other record
    assert metrics.tokens_run == 4 * 8
    assert metrics.ratio_mean == pytest.approx(1, abs=1e-5)
    assert metrics.ratio_lag0 is not None
    assert metrics.ratio_lag0 < 1e-4
    assert metrics.mismatch_kl == pytest.approx(0, abs=1e-6)
    assert metrics.clip_fraction == 0
    assert metrics.entropy == pytest.approx(-sum(logprobs) / 11, rel=1e-5)
    assert (metrics.staleness_mean, metrics.staleness_max) == (0, 0)
    assert metrics.grad_norm is not None
    assert metrics.grad_norm > 0
    assert not metrics.nonfinite
    assert metrics.flat()["tokens_trained"] == 11


def test_staleness_and_ratios_of_older_samples(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    one = as_sampled(trainer, record("a", PROMPT, [9, 2, 6]))
    trainer.train_step([one])
    trainer.train_step([])
    # Three tokens of a record that version 0 began, and one of a record all version 2's, the trainer's own, whose
    # logprob is wrong by log 2.
    mixed = replace(one, spans=(PolicySpan(0, 1, 0), PolicySpan(1, 2, 1), PolicySpan(2, 3, 2)))
    own = as_sampled(trainer, record("b", PROMPT, [5]))
    own = replace(own, spans=(PolicySpan(0, 1, 2),), logprobs=(own.logprobs[0] - math.log(2),))
    ratios = [math.exp(new - old) for new, old in zip(logprobs_of(trainer, one), one.logprobs, strict=True)]
    metrics = trainer.train_step([mixed, own])
    assert metrics.staleness_mean == pytest.approx((2 + 2 + 2 + 0) / 4)
    assert metrics.staleness_max == 2
    assert metrics.ratio_mean == pytest.approx((sum(ratios) + 2) / 4, rel=1e-4)
    assert metrics.ratio_lag0 == pytest.approx(1.0, rel=1e-3)
    assert trainer.version == 3


def test_no_token_of_the_present_policy_leaves_the_lag_0_ratio_open(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    one = as_sampled(trainer, record("a", PROMPT, [9, 2]))
    trainer.train_step([one])
    metrics = trainer.train_step([one])
    assert metrics.ratio_lag0 is None
    assert "ratio_lag0" not in metrics.flat()


def test_a_step_with_nothing_to_learn_counts_as_a_version(tiny, record):
    trainer = Trainer(tiny, SETTINGS)
    before = trainer.adapter()
    for records in ([], [record("e", PROMPT, [1], advantage=0.0)]):
        metrics = trainer.train_step(records)
        assert (metrics.loss, metrics.grad_norm, metrics.tokens_trained) == (0, 0, 0)
        assert metrics.ratio_mean is metrics.entropy is metrics.staleness_max is None
        assert not metrics.nonfinite
    assert trainer.version == 2
    for name, value in trainer.adapter().items():
        np.testing.assert_array_equal(value, before[name])


def gradient_one_by_one(trainer: Trainer, records: list[TrainingRecord]) -> dict[str, np.ndarray]:
    """The gradient of the mean over all their tokens, each record run whole and by itself."""
    total: dict[str, np.ndarray] = {}
    for one in records:
        plan = plan_step([one], 10_000, 50, shared=False)
        step = step_gradient(trainer.model, plan.batches, StepLoss(trainer.objective), PlainForward())
        total = {name: total.get(name, 0.0) + np.array(value) for name, value in step.gradients.items()}
    tokens = sum(len(one.completion_token_ids) for one in records)
    return {name: value / tokens for name, value in total.items()}


@pytest.mark.parametrize(("budget", "batches"), [(10_000, 1), (24, 2), (1, 3)])
def test_the_memory_budget_does_not_change_the_gradient(tiny, record, budget, batches):
    trainer = Trainer(tiny, replace(SETTINGS, micro_token_budget=budget))
    trainer.train_step([as_sampled(trainer, one) for one in batch(record)])  # B leaves zero
    plan = plan_step(batch(record), budget, 50)
    assert len(plan.batches) == batches
    step = step_gradient(trainer.model, plan.batches, StepLoss(trainer.objective), trainer.forward)
    expected = gradient_one_by_one(trainer, batch(record)[:4])
    for name, value in expected.items():
        ours = np.array(step.gradients[name]) / plan.tokens_trained
        np.testing.assert_allclose(ours, value, atol=1e-5 * np.abs(value).max(), rtol=0)
    norm = math.sqrt(sum(float((value**2).sum()) for value in expected.values()))
    assert trainer.train_step(batch(record)).grad_norm == pytest.approx(norm, rel=1e-4)


def test_long_gradients_are_cut_to_the_limit(tiny, record):
    """Adam forgets the length of a gradient, but remembers it in its first moment: 0.1 times the gradient."""
    trainer = Trainer(tiny, replace(SETTINGS, max_grad_norm=1e-3))
    metrics = trainer.train_step([as_sampled(trainer, one) for one in batch(record)])
    assert metrics.grad_norm is not None
    assert metrics.grad_norm > 1e-2
    moments = [
        value for name, value in arrays_by_path(trainer.optimizer.state).items() if name.endswith(".m")
    ]
    norm = math.sqrt(sum(float((moment**2).sum().item()) for moment in moments))
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_the_first_step_is_as_long_as_the_learning_rate(tiny, record):
    """With its bias corrected, Adam's first step is lr · sign(g); uncorrected it would be 3.16 times that."""
    trainer = Trainer(tiny, SETTINGS)
    before = trainer.adapter()
    trainer.train_step([as_sampled(trainer, one) for one in batch(record)])
    steps = np.concatenate(
        [np.abs(value - before[name]).ravel() for name, value in trainer.adapter().items()]
    )
    assert steps.max() == pytest.approx(SETTINGS.lr, rel=1e-2)


def nowhere(inputs: LossInputs) -> TokenLosses:
    """A loss whose gradient isn't finite."""
    losses = mx.log(inputs.logprobs - inputs.logprobs) * inputs.logprobs
    return TokenLosses(losses, mx.zeros(losses.shape, mx.bool_))


def test_a_gradient_that_is_not_finite_is_not_applied_and_the_third_ends_the_run(tiny, record):
    trainer = Trainer(tiny, SETTINGS, objective=Objective(nowhere))
    before = trainer.adapter()
    for _ in range(2):
        metrics = trainer.train_step(batch(record))
        assert metrics.nonfinite
        assert metrics.loss is metrics.grad_norm is None
    with pytest.raises(TrainingError, match="not finite 3 steps in a row"):
        trainer.train_step(batch(record))
    assert trainer.version == 2
    for name, value in trainer.adapter().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_record_of_another_model_is_refused(tiny, record):
    with pytest.raises(TrainingError, match="vocabulary of 50"):
        Trainer(tiny, SETTINGS).train_step([record("a", PROMPT, [50])])


def test_the_real_model_learns_and_agrees_with_its_full_forward_pass(smollm2, record):
    trainer = Trainer(smollm2, TrainerSettings(lr=1e-3))
    prompt = [504, 3575, 282, 4649, 314]
    records = [record("a", prompt, [7042, 30, 2]), record("b", prompt, [260, 1234], advantage=-1.0)]
    before = sum(logprobs_of(trainer, records[0]))
    metrics = trainer.train_step([as_sampled(trainer, one) for one in records])
    assert metrics.ratio_lag0 is not None
    assert metrics.ratio_lag0 < 1e-4
    assert sum(logprobs_of(trainer, records[0])) > before
