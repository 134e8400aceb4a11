"""Weights & Biases, for those who ask for it: without a project it isn't even imported."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.metrics import StepMetrics


class WandbLogger:
    """Logs every step to a Weights & Biases run whose files lie in ``folder``/wandb.

    A run that is resumed goes on there as well. ``WANDB_MODE=offline`` keeps everything on this machine. Only metrics
    and the configuration are logged: no code, no git remote, nothing of what the terminal shows.

    Raises:
        ConfigError: wandb isn't installed, or refuses the run (no API key, say).
    """

    def __init__(self, project: str, run_name: str, config: BaseModel, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "logging to Weights & Biases needs its package: pip install 'selfplay-ray[wandb]', "
                "or leave wandb_project unset"
            ) from error
        settings = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True)
        try:
            self._run = wandb.init(
                project=project,
                name=run_name,
                id=_run_id(folder),
                resume="allow",
                config=config.model_dump(mode="json"),
                dir=folder,
                settings=settings,
            )
        except wandb.Error as error:
            raise ConfigError(
                f"Weights & Biases refused project {project!r} ({error}); run `wandb login`, "
                "or set WANDB_MODE=offline"
            ) from error

        # Not its own count of what was logged: a run that goes on from a checkpoint takes some steps again, and what
        # is logged for a step it has counted past is dropped.
        self._run.define_metric("*", step_metric="step")

    def log_step(self, metrics: StepMetrics) -> None:
        self._run.log(metrics.flat())

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """The run's name to Weights & Biases, which must know it again: kept in its folder."""
    file = folder / "wandb-id"
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def wandb_logger(config: RunConfig, run: RunLog) -> WandbLogger | None:
    """The logger ``config`` asks for; None, with nothing imported, where it names no project."""
    if not config.wandb_project:
        return None
    return WandbLogger(config.wandb_project, config.wandb_run_name or run.name, config, run.folder)
