"""What was said in an evaluation: files beside the run's own, in the format of ``rollouts.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from selfplay_ray.runlog.json_lines import os_errors
from selfplay_ray.runlog.rollouts import encode_tree
from selfplay_ray.types import GenerateResult

FOLDER = "evaluations"


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
