"""Going on with a run that has ended before its end, or that is to take more steps."""

from __future__ import annotations

import tomllib
from pathlib import Path

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.training.checkpoint import read_checkpoint
from selfplay_ray.training.checkpoint_folder import METRICS, load_newest

FIXED = ("model_path", "lora_rank", "lora_scale", "lora_layers", "adapter", "seed", "batch_size")
"""Settings with which a run must go on as it began."""


def resume(config: RunConfig, folder: Path) -> tuple[RunLog, list[StepMetrics]]:
    """The log of the run in ``folder``, and the steps up to its newest sound checkpoint.

    Nothing there has changed yet: once all stands that it needs to go on, ``RunLog.go_back`` takes those steps.

    Raises:
        ConfigError: there is no run, it has taken all its steps, its journal is gone, or a setting isn't what it began
            with.
        ReplayError: another process is at this run, or its journal is damaged.
        TrainingError: all its checkpoints are damaged.
        RunLogError: its files can't be read or written.
    """
    log = RunLog.create(folder.parent, folder.name, "", resume=True)
    _check_settings(config, log)
    if log.replay_path.exists():
        # Refused while another process is at it, before anything is changed.
        ReplayBuffer(log.replay_path, requeue=False).close()
    newest = load_newest(log.checkpoints_dir, read_checkpoint)
    if newest is None:
        return log, log.history(None)
    if not log.replay_path.exists():
        raise ConfigError(f"{log.replay_path} is gone, without which {folder} can't go on where it was")
    step = StepMetrics.from_flat(newest.extra[METRICS])
    if step.step >= config.num_steps:
        _log_if_missing(log, step)
        raise ConfigError(f"{folder} has taken its {step.step} steps; to go on, give a num_steps above that")
    return log, log.history(step)


def _log_if_missing(log: RunLog, step: StepMetrics) -> None:
    """A run that was killed after its last checkpoint may not have come to log that step."""
    logged = read_metrics(log.metrics_path) if log.metrics_path.exists() else []
    if not logged or logged[-1].step < step.step:
        log.log_step(step)
        log.close()


def _check_settings(config: RunConfig, log: RunLog) -> None:
    """A run that has no ``config.toml`` was killed before it was there, and before anything was played. What was
    None isn't in it."""
    if not log.config_path.exists():
        return
    before = tomllib.loads(log.config_path.read_text(encoding="utf-8"))
    now = config.model_dump(mode="json")
    began = {name: before.get(name, type(config).model_fields[name].default) for name in FIXED}
    changed = [
        f"{log.folder} began with {name} = {began[name]!r} and can't go on with {now[name]!r}"
        for name in FIXED
        if began[name] != now[name]
    ]
    if changed:
        raise ConfigError("\n".join(changed))
