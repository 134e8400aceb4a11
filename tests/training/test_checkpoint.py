"""Checkpoints: going on exactly, replacing whole, and one clear sentence for what can't be read."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.errors import AdapterError, ConfigError, TrainingError
from selfplay_ray.lora import LoRASettings
from selfplay_ray.training import checkpoint
from selfplay_ray.training.optimizer import read_optimizer
from selfplay_ray.training.trainer import Trainer, TrainerSettings

SETTINGS = TrainerSettings(lr=1e-2, weight_decay=0.1, lora=LoRASettings(rank=2))


@pytest.fixture
def records(record):
    """Two steps' worth."""
    first = [record("a", [3, 1, 4], [1, 5]), record("b", [3, 1, 4], [9, 2, 6], advantage=-1.0)]
    return first, [record("c", [5, 3], [5, 8, 9]), record("d", [5, 3], [7], advantage=-0.5)]


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    return {**trainer.adapter(), **read_optimizer(trainer.optimizer)}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_going_on_from_a_checkpoint_is_going_on(tiny, records, tmp_path):
    through = Trainer(tiny, SETTINGS)
    through.train_step(records[0])
    through.save(tmp_path / "step-1", extra={"baselines": {"solve": 0.1 + 0.2}, "stores": [1, None]})
    expected = through.train_step(records[1])

    resumed = Trainer(
        tiny, replace(SETTINGS, seed=9)
    )  # other weights at first: all must come from the folder
    extra = resumed.load(tmp_path / "step-1")
    assert extra == {"baselines": {"solve": 0.1 + 0.2}, "stores": [1, None]}
    assert resumed.version == 1
    metrics = resumed.train_step(records[1])
    assert_same(state(resumed), state(through))
    assert replace(metrics, seconds=0) == replace(expected, seconds=0)


def test_a_run_of_bad_gradients_is_remembered(tiny, tmp_path):
    trainer = Trainer(tiny, SETTINGS)
    trainer.nonfinite_in_a_row = 2
    trainer.save(tmp_path / "c")
    resumed = Trainer(tiny, SETTINGS)
    resumed.load(tmp_path / "c")
    assert resumed.nonfinite_in_a_row == 2


def test_a_newer_checkpoint_takes_the_place_of_the_older(tiny, records, tmp_path):
    trainer = Trainer(tiny, SETTINGS)
    for step in records:
        trainer.train_step(step)
        trainer.save(tmp_path / "latest")
    resumed = Trainer(tiny, SETTINGS)
    resumed.load(tmp_path / "latest")
    assert resumed.version == 2
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_killed_between_the_renames_the_old_one_is_found(tiny, records, tmp_path, monkeypatch):
    trainer = Trainer(tiny, SETTINGS)
    trainer.save(tmp_path / "latest")
    trainer.train_step(records[0])
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if "unfinished" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save(tmp_path / "latest")
    monkeypatch.undo()
    assert not (tmp_path / "latest").exists()
    resumed = Trainer(tiny, SETTINGS)
    resumed.load(tmp_path / "latest")
    assert resumed.version == 0
    trainer.save(tmp_path / "latest")
    resumed.load(tmp_path / "latest")
    assert resumed.version == 1
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_full_disk_leaves_the_old_one_in_place(tiny, records, tmp_path, monkeypatch):
    trainer = Trainer(tiny, SETTINGS)
    trainer.save(tmp_path / "latest")
    trainer.train_step(records[0])

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(
        TrainingError, match=r"can't write checkpoint .*latest: No space left .*resume the run"
    ):
        trainer.save(tmp_path / "latest")
    resumed = Trainer(tiny, SETTINGS)
    resumed.load(tmp_path / "latest")
    assert resumed.version == 0
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_what_is_not_json_is_refused_and_leaves_nothing(tiny, tmp_path):
    with pytest.raises(TrainingError, match="isn't JSON"):
        Trainer(tiny, SETTINGS).save(tmp_path / "c", extra={"stores": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tiny, records, tmp_path) -> Path:
    trainer = Trainer(tiny, SETTINGS)
    trainer.train_step(records[0])
    trainer.save(tmp_path / "c")
    return tmp_path / "c"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def reformat(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no checkpoint at"),
        (lambda folder: (folder / "state.json").unlink(), "there is no checkpoint at"),
        (lambda folder: cut(folder / "state.json"), "is damaged"),
        (lambda folder: (folder / "state.json").write_text("[]"), "is damaged"),
        (lambda folder: (folder / "adapter.safetensors").unlink(), "is damaged"),
        (lambda folder: cut(folder / "adapter.safetensors"), "adapter.safetensors is not the file"),
        (lambda folder: cut(folder / "optimizer.safetensors"), "optimizer.safetensors is not the file"),
        (reformat, "has format 2; this version reads 1"),
    ],
)
def test_a_missing_or_torn_checkpoint_is_one_clear_sentence(tiny, saved, damage, message):
    damage(saved)
    trainer = Trainer(tiny, SETTINGS)
    before = state(trainer)
    with pytest.raises(TrainingError, match=message):
        trainer.load(saved)
    assert_same(state(trainer), before)


def test_other_lora_settings_are_refused(tiny, saved):
    with pytest.raises(ConfigError, match=r"made with LoRASettings\(rank=2.*asks for LoRASettings\(rank=4"):
        Trainer(tiny, replace(SETTINGS, lora=LoRASettings(rank=4))).load(saved)


def test_another_models_checkpoint_is_refused(deeper, saved):
    with pytest.raises(AdapterError, match=r"the adapter lacks 'model\.layers\.2"):
        Trainer(deeper, SETTINGS).load(saved)


def test_an_optimizer_of_other_parameters_is_refused(tiny, saved):
    trainer = Trainer(tiny, SETTINGS)
    path = saved / "optimizer.safetensors"
    mx.save_safetensors(str(path), {"step": mx.array(1)})
    content = json.loads((saved / "state.json").read_text())
    content["files"]["optimizer.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (saved / "state.json").write_text(json.dumps(content))
    before = state(trainer)
    with pytest.raises(TrainingError, match="belongs to other parameters"):
        trainer.load(saved)
    assert_same(state(trainer), before)
