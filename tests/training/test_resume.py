"""Which runs can be gone on with, and as what."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError, ReplayError
from selfplay_ray.lora import LoRASettings
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.metrics import StepMetrics, step_metrics
from selfplay_ray.training.checkpoint_folder import METRICS, checkpoint_path
from selfplay_ray.training.resume import resume
from selfplay_ray.training.trainer import Trainer, TrainerSettings


def metrics(step: int) -> StepMetrics:
    return step_metrics(
        step=step,
        version=step,
        time=1.0,
        groups=[],
        records=[],
        dropped_stale=0,
        train={"loss": 0.5},
        tokens_per_second=1.0,
        learner_wait_seconds=0.0,
        engine_wait_seconds=0.0,
    )


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    """A run of three logged steps."""
    log = RunLog.create(tmp_path, "run", "task")
    log.write_config(RunConfig(name="run", num_steps=5))
    for step in (1, 2, 3):
        log.log_step(metrics(step))
    log.close()
    ReplayBuffer(log.replay_path).close()
    return log


def save_checkpoint(log: RunLog, tiny: Path, step: int) -> None:
    trainer = Trainer(tiny, TrainerSettings(lora=LoRASettings(rank=1)))
    for _ in range(step):
        trainer.train_step([])
    trainer.save(checkpoint_path(log.checkpoints_dir, step), {METRICS: metrics(step).as_json()})


@pytest.mark.parametrize(("checkpoint", "left"), [(2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4])])
def test_the_steps_after_the_checkpoint_are_forgotten_and_its_own_is_never_missing(
    log, tiny, checkpoint, left
):
    save_checkpoint(log, tiny, checkpoint)
    log.adapters_dir.mkdir()
    for version in (1, 2, 3):
        log.adapter_path(version).touch()
    resumed, history = resume(RunConfig(num_steps=5), log.folder)
    assert [one.step for one in history] == left
    assert history[-1] == metrics(checkpoint)
    assert [one.step for one in read_metrics(log.metrics_path)] == [1, 2, 3]  # until it does go on
    resumed.go_back(history)
    assert read_metrics(resumed.metrics_path) == history
    assert list(resumed.adapters()) == [version for version in left if version < 4]


def test_without_a_checkpoint_it_begins_again(log):
    resumed, history = resume(RunConfig(num_steps=5), log.folder)
    assert history == []
    resumed.go_back(history)
    assert read_metrics(log.metrics_path) == []


def test_a_run_that_is_done_wants_more_steps(log, tiny):
    save_checkpoint(log, tiny, 3)
    with pytest.raises(ConfigError, match=r"has taken its 3 steps; .* num_steps above"):
        resume(RunConfig(num_steps=3), log.folder)
    assert len(resume(RunConfig(num_steps=4), log.folder)[1]) == 3


def test_what_a_run_is_made_of_stays(log):
    with pytest.raises(ConfigError) as told:
        resume(RunConfig(seed=1, lora_rank=4, lr=0.5, adapter=Path("other")), log.folder)
    assert str(told.value).splitlines() == [
        f"{log.folder} began with lora_rank = 8 and can't go on with 4",
        f"{log.folder} began with adapter = None and can't go on with 'other'",
        f"{log.folder} began with seed = 0 and can't go on with 1",
    ]


def test_a_run_that_goes_on_elsewhere_is_left_alone(log, tiny):
    save_checkpoint(log, tiny, 1)
    with ReplayBuffer(log.replay_path), pytest.raises(ReplayError, match="another process has it open"):
        resume(RunConfig(num_steps=5), log.folder)
    assert len(read_metrics(log.metrics_path)) == 3


def test_without_its_journal_a_trained_policy_does_not_begin_again(log, tiny):
    save_checkpoint(log, tiny, 2)
    log.replay_path.unlink()
    with pytest.raises(ConfigError, match=r"replay\.sqlite is gone, without which .*run can't go on"):
        resume(RunConfig(num_steps=5), log.folder)


def test_the_last_step_is_logged_even_if_the_run_was_killed_before_it_was(log, tiny):
    save_checkpoint(log, tiny, 4)
    for _ in range(2):
        with pytest.raises(ConfigError, match="has taken its 4 steps"):
            resume(RunConfig(num_steps=4), log.folder)
        assert [one.step for one in read_metrics(log.metrics_path)] == [1, 2, 3, 4]


def test_fewer_steps_than_there_are_take_none_back(log, tiny):
    save_checkpoint(log, tiny, 2)
    with pytest.raises(ConfigError, match="has taken its 2 steps"):
        resume(RunConfig(num_steps=1), log.folder)
    assert len(read_metrics(log.metrics_path)) == 3
