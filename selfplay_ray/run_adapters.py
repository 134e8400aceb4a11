"""The adapters that a run has left in its folder, and the model they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from selfplay_ray.config_sources import read_toml
from selfplay_ray.errors import AdapterError, ConfigError
from selfplay_ray.runlog.folder import VERSION, RunLog


@dataclass(frozen=True, slots=True)
class RunAdapter:
    """An adapter's file. ``model`` is what the run calls its model; None where no run is known."""

    path: Path
    model: str | None


def find_adapter(source: Path, version: int | None = None) -> RunAdapter:
    """Version ``version`` (the last, if None) of the adapters of the run in folder ``source``; or ``source`` itself
    where it is an adapter's file.

    Raises:
        ConfigError: there is neither, or the run doesn't have that version.
        AdapterError: the run has none yet.
    """
    if source.is_file():
        if version is not None:
            raise ConfigError(f"{source} is one adapter; a version is picked among those of a run's folder")
        runs = source.absolute().parents[1:3]  # of adapters/FILE, and of checkpoints/VERSION/FILE
        return RunAdapter(source, next((model for run in runs if (model := _model_of(run))), None))
    log = RunLog(source)
    if not log.config_path.is_file():
        raise ConfigError(
            f"there is no run and no adapter at {source}; give a run's folder (runs/NAME) or an adapter's file"
        )
    files = _files(log)
    if not files:
        raise AdapterError(
            f"the run in {source} has no adapter yet; the first is there after its first step, or where all weights "
            "are trained after its first checkpoint"
        )
    chosen = max(files) if version is None else version
    if chosen not in files:
        raise ConfigError(f"the run in {source} has no version {chosen}; it has {ranges(sorted(files))}")
    return RunAdapter(files[chosen], _model_of(source))


def _files(log: RunLog) -> dict[int, Path]:
    """Where each version is. Where all weights are trained only checkpoints hold them."""
    whole = log.checkpoints_dir.glob("v*/adapter.safetensors")
    return log.adapters() or {
        int(name[1]): path for path in whole if (name := VERSION.fullmatch(path.parent.name))
    }


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as a person writes them: ``"1-12, 14"``."""
    runs = groupby(
        enumerate(numbers), key=lambda pair: pair[1] - pair[0]
    )  # constant while they are consecutive
    spans = [[number for _, number in run] for _, run in runs]
    return ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)


def _model_of(folder: Path) -> str | None:
    """What the run in ``folder`` calls its model; None if there is no run."""
    path = RunLog(folder).config_path
    if not path.is_file():
        return None
    model = read_toml(path).get("model_path")
    if not isinstance(model, str):
        raise ConfigError(f"{path} doesn't name a model; it is no configuration of a run")
    return model
