"""A run that begins with an adapter somebody trained: it computes the same at first, and all of it goes on learning."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.benchmarks.noise import noisy_weights
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import AdapterError
from selfplay_ray.inference.peft import save_peft
from selfplay_ray.lora import LoRASettings, save_adapter
from selfplay_ray.training.trainer import Trainer, TrainerSettings

PROMPT = [3, 1, 4, 1, 5]
SMALL = LoRASettings(rank=2, scale=5.0)


def logits(trainer: Trainer) -> np.ndarray:
    return np.array(trainer.model(mx.array([PROMPT])))


def trained(tiny: Path, record) -> Trainer:
    """A trainer of a small adapter that has taken three steps."""
    trainer = Trainer(tiny, TrainerSettings(lr=1e-2, lora=SMALL))
    for _ in range(3):
        trainer.train_step([record("a", PROMPT, [9, 2, 6])])
    return trainer


def test_another_runs_adapter_goes_on_in_a_larger_one(tiny: Path, record, tmp_path: Path):
    first = trained(tiny, record)
    path = tmp_path / "v000003.safetensors"
    save_adapter(path, first.adapter(), SMALL, first.version)
    second = Trainer(tiny, TrainerSettings(lr=1e-2, lora=LoRASettings(rank=4, scale=3.0), adapter=path))
    assert second.version == 0
    assert np.abs(logits(first) - logits(Trainer(tiny, TrainerSettings()))).max() > 0.05
    np.testing.assert_allclose(logits(second), logits(first), atol=1e-5)
    before = second.adapter()
    for _ in range(3):
        second.train_step([record("a", PROMPT, [9, 2, 6])])
    for name, value in second.adapter().items():
        assert (value != before[name]).mean() > 0.99, name  # the ranks that were not there before, too


def test_pefts_adapter_of_a_few_layers_lets_the_others_learn(tiny: Path, record, tmp_path: Path):
    names = [f"model.layers.1.self_attn.{name}_proj.lora_{half}" for name in "qv" for half in "ab"]
    shapes = {name: value.shape for name, value in trained(tiny, record).adapter().items() if name in names}
    save_peft(tmp_path / "theirs", noisy_weights(shapes, seed=1), SMALL.scale, None)
    trainer = Trainer(tiny, TrainerSettings(lr=1e-2, lora=SMALL, adapter=tmp_path / "theirs"))
    before = trainer.adapter()
    np.testing.assert_array_equal(before[names[1]], noisy_weights(shapes, seed=1)[names[1]])
    for _ in range(3):
        trainer.train_step([record("a", PROMPT, [9, 2, 6])])
    for name, value in trainer.adapter().items():
        assert (value != before[name]).mean() > 0.99, name


def test_the_configuration_names_it():
    assert TrainerSettings.from_config(RunConfig(adapter=Path("a"))).adapter == Path("a")


def test_one_that_does_not_fit_is_one_sentence(tiny: Path, record, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_adapter(path, trained(tiny, record).adapter(), SMALL, 3)
    with pytest.raises(
        AdapterError, match="can't be used: the adapter has rank 2, and there is only room for 1; ask"
    ):
        Trainer(tiny, TrainerSettings(lora=LoRASettings(rank=1), adapter=path))
    with pytest.raises(AdapterError, match=r"^the adapter none can't be used: there is no adapter at none$"):
        Trainer(tiny, TrainerSettings(adapter=Path("none")))
