"""The adapters that a run has left in its folder, and the model they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from selfplay_ray.config_sources import read_toml
from selfplay_ray.errors import AdapterError, ConfigError
from selfplay_ray.runlog.folder import RunLog

ADAPTER_FILE = re.compile(r"v(\d+)\.safetensors")


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
        return RunAdapter(source, _model_of(source.absolute().parent.parent))
    log = RunLog(source)
    if not log.config_path.is_file():
        raise ConfigError(
            f"there is no run and no adapter at {source}; give a run's folder (runs/NAME) or an adapter's file"
        )
    versions = adapter_versions(log)
    if not versions:
        raise AdapterError(f"the run in {source} has no adapter yet; the first is there after its first step")
    chosen = versions[-1] if version is None else version
    if chosen not in versions:
        raise ConfigError(f"the run in {source} has no version {chosen}; it has {ranges(versions)}")
    return RunAdapter(log.adapter_path(chosen), _model_of(source))


def adapter_versions(log: RunLog) -> list[int]:
    """The versions whose adapters are there, in ascending order."""
    names = (ADAPTER_FILE.fullmatch(path.name) for path in log.adapters_dir.glob("*"))
    return sorted(int(name[1]) for name in names if name)


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
