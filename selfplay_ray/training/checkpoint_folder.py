"""The checkpoints of a run, ``checkpoints/v000012``: which to go on from, and which to keep."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from selfplay_ray.errors import TrainingError
from selfplay_ray.training.checkpoint import read_extra

logger = logging.getLogger(__name__)

NAME = re.compile(r"v(\d{6,})")
METRICS = "metrics"
"""The key in a checkpoint's ``extra`` for the metrics of its step: who goes on from it must not miss them."""

Loaded = TypeVar("Loaded")


def checkpoint_path(folder: Path, version: int) -> Path:
    """Where policy ``version``'s checkpoint is: names sort by version."""
    return folder / f"v{version:06d}"


def checkpoint_versions(folder: Path) -> list[int]:
    """Of the checkpoints there are, oldest first; unfinished ones have other names."""
    if not folder.is_dir():
        return []
    names = (NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(name[1]) for name in names if name)


def load_newest(folder: Path, load: Callable[[Path], Loaded]) -> Loaded | None:
    """``load`` of the newest checkpoint that isn't damaged; None where there is none at all.

    Raises:
        TrainingError: there are some, and all are damaged.
    """
    damage: TrainingError | None = None
    for version in reversed(checkpoint_versions(folder)):
        try:
            return load(checkpoint_path(folder, version))
        except TrainingError as error:
            logger.warning("%s", error)
            damage = damage or error
    if damage is not None:
        raise damage
    return None


def prune(folder: Path, keep: int, best_metric: str) -> int:
    """Remove all checkpoints but the ``keep`` newest and the (first) one where ``best_metric`` was highest.

    Returns the version of the oldest of the newest: nobody has to go on from before it.
    """
    versions = checkpoint_versions(folder)
    newest = versions[-keep:]
    scores = {
        version: read_extra(checkpoint_path(folder, version))[METRICS].get(best_metric)
        for version in versions
    }
    known = {version: score for version, score in scores.items() if score is not None}
    best = max(known, key=lambda version: (known[version], -version), default=None)
    for version in versions:
        if version not in newest and version != best:
            shutil.rmtree(checkpoint_path(folder, version))
    return newest[0]
