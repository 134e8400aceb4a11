"""Gradient checkpointing changes what is kept, and not a bit of the gradient."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.llama import TransformerBlock

from selfplay_ray.lora import LoRASettings, arrays_by_path
from selfplay_ray.training import pages
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.forward import Forward, PlainForward, TreeForward
from selfplay_ray.training.gradient import StepLoss, step_gradient
from selfplay_ray.training.trainer import Trainer, TrainerSettings

SETTINGS = TrainerSettings(lora=LoRASettings(rank=4))


def conversations(record, length):
    """Two of three turns each that begin alike."""
    rng = np.random.default_rng(0)
    start, records = rng.integers(0, 50, length).tolist(), []
    for number in range(2):
        told = start
        for turn in range(3):
            reply = rng.integers(0, 50, length).tolist()
            records.append(record(f"{number}/{turn}", told, reply, advantage=float(rng.normal())))
            told = [*told, *reply, number]
    return records


def trained(tiny, **settings) -> Trainer:
    """A trainer whose adapter has taken a step, so that B isn't zero."""
    return Trainer(tiny, replace(SETTINGS, lr=0.1, **settings))


def gradient(trainer: Trainer, records, forward: Forward):
    """The plan, the gradients, and the least peak of ten: when MLX's thread comes to free what it no longer needs
    depends on what else runs."""
    plan = plan_step(records, 10_000, 50, shared=forward.shared)
    peaks = []
    for _ in range(10):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        step = step_gradient(trainer.model, plan.batches, StepLoss(trainer.objective), forward)
        gradients = {n: np.array(g) for n, g in step.gradients.items()}
        peaks.append(mx.get_peak_memory() - before)
        del step
    return plan, gradients, min(peaks)


@pytest.mark.parametrize("forward", [TreeForward(), PlainForward()])
def test_the_same_gradient_of_less_memory(tiny, record, forward, monkeypatch):
    monkeypatch.setattr(pages, "PASS_OVERHEAD", 0)
    records = conversations(record, 24)
    found = []
    for recomputed in (False, True):
        trainer = trained(tiny, grad_checkpoint=recomputed)
        trainer.train_step(records)
        found.append(gradient(trainer, records, forward))
    (plan, kept, kept_memory), (_, again, again_memory) = found
    if forward.shared:
        assert len(plan.batches[0].passes) > 2  # keys and values go from one to the next
    for name, value in kept.items():
        np.testing.assert_array_equal(again[name], value)
        assert value.any()
    assert again_memory < 0.85 * kept_memory


def test_parameters_keep_their_names_and_other_models_their_layers(tiny):
    trainer, other = trained(tiny, grad_checkpoint=True), trained(tiny)
    assert trainer.adapter().keys() == other.adapter().keys()
    assert (
        arrays_by_path(trainer.model.parameters()).keys() == arrays_by_path(other.model.parameters()).keys()
    )
    assert {type(layer) for layer in other.model.layers} == {TransformerBlock}


def test_the_parameters_left_behind_are_the_ones_there_were(tiny, record):
    trainer = trained(tiny, grad_checkpoint=True)
    before = trainer.adapter()
    gradient(trainer, conversations(record, 8), trainer.forward)
    for name, value in trainer.adapter().items():
        np.testing.assert_array_equal(value, before[name])
