"""Going on with a run that has ended before its end, or that is to take more steps."""

from __future__ import annotations

import tomllib
from pathlib import Path

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.training.checkpoint import read_checkpoint
from selfplay_ray.training.checkpoint_folder import METRICS, load_newest

FIXED = ("model_path", "lora_rank", "lora_scale", "lora_layers", "seed", "batch_size")
"""Settings with which a run must go on as it began."""


def resume(config: RunConfig, folder: Path) -> tuple[RunLog, list[StepMetrics]]:
    """The log of the run in ``folder`` as its newest sound checkpoint left it, and the steps up to there.

    Raises:
        ConfigError: there is no run, it has taken all its steps, or a setting isn't what it began with.
        TrainingError: all its checkpoints are damaged.
        RunLogError: its files can't be read or written.
    """
    log = RunLog.create(folder.parent, folder.name, "", resume=True)
    _check_settings(config, log)
    newest = load_newest(log.checkpoints_dir, read_checkpoint)
    if newest is None:
        return log, log.go_back(None)
    step = StepMetrics.from_flat(newest.extra[METRICS])
    if step.step >= config.num_steps:
        raise ConfigError(f"{folder} has taken its {step.step} steps; to go on, give a num_steps above that")
    return log, log.go_back(step)


def _check_settings(config: RunConfig, log: RunLog) -> None:
    """A run that has no ``config.toml`` was killed before it was there, and before anything was played."""
    if not log.config_path.exists():
        return
    before = tomllib.loads(log.config_path.read_text(encoding="utf-8"))
    now = config.model_dump(mode="json")
    changed = [
        f"{log.folder} began with {name} = {before[name]!r} and can't go on with {now[name]!r}"
        for name in FIXED
        if name in before and before[name] != now[name]
    ]
    if changed:
        raise ConfigError("\n".join(changed))
