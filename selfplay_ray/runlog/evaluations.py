"""What evaluations leave: what was said, in files beside the run's own in the format of ``rollouts.jsonl``; and
numbers among those of a training step, under names that begin with ``eval/``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfplay_ray.runlog.json_lines import os_errors
from selfplay_ray.runlog.rollouts import encode_tree
from selfplay_ray.types import GenerateResult

FOLDER = "evaluations"
MEAN, LOW, HIGH = "eval/reward/", "eval/reward_low/", "eval/reward_high/"


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its interval, which are NaN where there is none; as text ``0.12 [0.09, 0.16]``."""

    mean: float
    low: float
    high: float

    def __format__(self, sign: str) -> str:
        numbers = (f"{round(value, 2) + 0.0:{sign}.2f}" for value in (self.mean, self.low, self.high))
        mean, low, high = numbers  # adding 0.0 turned -0.0 into 0.0
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


def evaluated(values: Mapping[str, float]) -> dict[str, Interval]:
    """Each role's mean reward in the evaluation whose numbers are among a step's ``values``; empty without one."""
    roles = [name.removeprefix(MEAN) for name in values if name.startswith(MEAN)]
    return {role: Interval(*(values[part + role] for part in (MEAN, LOW, HIGH))) for role in roles}


def write_evaluation(run: Path, name: str, version: int, results: Iterable[GenerateResult]) -> Path:
    """Keep the trees that policy ``version`` played in ``evaluations/<name>.jsonl`` of the run's folder, in place of
    what was there; returns the file.

    Raises:
        RunLogError: it can't be written; the one before it is untouched.
    """
    path = run / FOLDER / f"{name}.jsonl"
    part = path.with_suffix(".part")
    with os_errors(path):
        path.parent.mkdir(exist_ok=True)
        with part.open("wb") as file:
            for result in results:
                file.write(encode_tree(version, result, tokens=False, evaluation=True) + b"\n")
        part.replace(path)
    return path
