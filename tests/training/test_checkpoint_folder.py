"""Which checkpoint a run goes on from, and which it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfplay_ray.errors import TrainingError
from selfplay_ray.lora import LoRASettings
from selfplay_ray.training.checkpoint import read_checkpoint
from selfplay_ray.training.checkpoint_folder import (
    METRICS,
    checkpoint_path,
    checkpoint_versions,
    load_newest,
    prune,
)
from selfplay_ray.training.trainer import Trainer, TrainerSettings


@pytest.fixture(scope="module")
def trainer(tiny: Path) -> Trainer:
    return Trainer(tiny, TrainerSettings(lora=LoRASettings(rank=1)))


def save(trainer: Trainer, folder: Path, scores: dict[int, float | None]) -> None:
    for version, score in scores.items():
        trainer.save(checkpoint_path(folder, version), {METRICS: {"reward/A": score}})


def test_the_newest_are_kept_and_the_best(trainer: Trainer, tmp_path: Path):
    save(trainer, tmp_path, {1: 0.1, 2: 0.9, 3: None, 4: 0.9, 5: 0.2, 12: 0.3})
    assert prune(tmp_path, 12, 2, "reward/A") == 5
    assert checkpoint_versions(tmp_path) == [2, 5, 12]  # 2 is as good as 4, and older
    assert prune(tmp_path, 12, 1, "") == 12
    assert checkpoint_versions(tmp_path) == [12]


def test_what_a_kill_has_torn_is_removed_and_does_not_count(trainer: Trainer, tmp_path: Path):
    save(trainer, tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3})
    (checkpoint_path(tmp_path, 2) / "state.json").unlink()  # its removal was under way
    (checkpoint_path(tmp_path, 4) / "state.json").write_text("{")
    (tmp_path / ".v000005.77.unfinished").mkdir()
    assert prune(tmp_path, 4, 2, "reward/A") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000001", "v000003"]


def test_a_later_one_than_the_last_written_is_damaged_and_goes(trainer: Trainer, tmp_path: Path):
    save(trainer, tmp_path, {2: 0.1, 4: 0.9})
    (checkpoint_path(tmp_path, 4) / "adapter.safetensors").write_bytes(b"torn")
    save(trainer, tmp_path, {3: 0.2})
    assert prune(tmp_path, 3, 1, "reward/A") == 3
    assert checkpoint_versions(tmp_path) == [3]


def test_of_no_checkpoints_there_is_no_newest(tmp_path: Path):
    assert load_newest(tmp_path / "none", read_checkpoint) is None
    (tmp_path / ".v000003.77.unfinished").mkdir()
    assert load_newest(tmp_path, read_checkpoint) is None


def test_a_damaged_one_is_passed_over_and_told(trainer: Trainer, tmp_path: Path, caplog):
    save(trainer, tmp_path, {1: 0.0, 2: 0.0})
    (checkpoint_path(tmp_path, 2) / "optimizer.safetensors").write_bytes(b"torn")
    assert load_newest(tmp_path, lambda path: read_checkpoint(path) and path) == checkpoint_path(tmp_path, 1)
    assert "v000002 is damaged" in caplog.text
    (checkpoint_path(tmp_path, 1) / "state.json").write_text("{")
    with pytest.raises(TrainingError, match="v000002 is damaged"):
        load_newest(tmp_path, read_checkpoint)
