"""The checkpoints of a run, ``checkpoints/v000012``: which to go on from, and which to keep."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from selfplay_ray.errors import TrainingError

logger = logging.getLogger(__name__)

NAME = re.compile(r"v(\d{6,})")
PART_OF_ONE = re.compile(r"v\d{6,}|\.v\d{6,}\.(\d+\.unfinished|replaced)")
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


def prune(folder: Path, version: int, keep: int, best_metric: str) -> int:
    """Remove all checkpoints but the ``keep`` newest and the (first) one where ``best_metric`` was highest.

    ``version`` was written last: a later one is of steps that were taken back, because it is damaged. What can't be
    read, as where a kill has torn its writing or removal, goes as well.

    Returns the version of the oldest of the newest: nobody has to go on from before it.
    """
    scores = {
        found: score
        for found in checkpoint_versions(folder)
        if found <= version and (score := _score(checkpoint_path(folder, found), best_metric)) is not None
    }
    newest = list(scores)[-keep:]
    known = [found for found in scores if scores[found] > -math.inf]
    best = max(known, key=lambda found: (scores[found], -found), default=None)
    kept = {checkpoint_path(folder, found).name for found in (*newest, best) if found is not None}
    for path in list(folder.iterdir()):
        if PART_OF_ONE.fullmatch(path.name) and path.name not in kept:
            shutil.rmtree(path)
    return newest[0]


def _score(checkpoint: Path, metric: str) -> float | None:
    """Its step's ``metric``, the least there is where it had none; None where the checkpoint can't be read."""
    from selfplay_ray.training.checkpoint import (
        read_extra,
    )  # with MLX, which who only looks for one doesn't need

    try:
        score: float | None = read_extra(checkpoint)[METRICS].get(metric)
    except TrainingError as error:
        logger.warning("%s", error)
        return None
    return -math.inf if score is None else score
