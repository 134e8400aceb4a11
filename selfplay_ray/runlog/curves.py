"""Learning curves: each role's mean reward by step over several seeds, as a small table and as a picture."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from selfplay_ray.errors import ConfigError, RunLogError
from selfplay_ray.runlog.json_lines import os_errors
from selfplay_ray.runlog.metrics import StepMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The mean reward of ``role`` over the rollouts of one step of one run."""

    task: str
    seed: int
    step: int
    role: str
    reward: float


COLUMNS = tuple(field.name for field in fields(CurvePoint))


def curve_points(task: str, seed: int, history: Iterable[StepMetrics]) -> list[CurvePoint]:
    """The curves in one run's metrics."""
    return [
        CurvePoint(task, seed, int(metrics.step), role, round(stats.mean, 4))
        for metrics in history
        for role, stats in sorted(metrics.rewards.items())
    ]


def write_curves(path: Path, points: Iterable[CurvePoint]) -> None:
    """Write ``points`` as CSV, a point a line.

    Raises:
        RunLogError: the file can't be written.
    """
    with os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(astuple(point) for point in points)


def read_curves(path: Path) -> list[CurvePoint]:
    """The points in the CSV at ``path``.

    Raises:
        RunLogError: it can't be read, or isn't such a table.
    """
    with os_errors(path), path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    if tuple(header) != COLUMNS:
        raise RunLogError(f"{path} is no table of learning curves: its columns must be {', '.join(COLUMNS)}")
    try:
        return [
            CurvePoint(task, int(seed), int(step), role, float(reward))
            for task, seed, step, role, reward in rows
        ]
    except ValueError as error:
        raise RunLogError(f"{path} is no table of learning curves: {error}") from None


def mean_curve(points: Iterable[CurvePoint]) -> list[tuple[int, float]]:
    """(step, mean over the seeds that took it), in the order of the steps."""
    by_step: dict[int, list[float]] = {}
    for point in points:
        by_step.setdefault(point.step, []).append(point.reward)
    return [(step, statistics.fmean(rewards)) for step, rewards in sorted(by_step.items())]


def draw_curves(path: Path, points: Sequence[CurvePoint]) -> None:
    """Draw a panel for each task into ``path`` (SVG or PNG, by its suffix): seeds thin, their mean thick.

    The same points give the same file.

    Raises:
        ConfigError: there is nothing to draw, or nothing to draw it with.
        RunLogError: the file can't be written.
    """
    tasks = list(dict.fromkeys(point.task for point in points))
    if not tasks:
        raise ConfigError("there are no learning curves to draw; name tasks to train first")
    matplotlib = _matplotlib()
    with matplotlib.rc_context({"svg.hashsalt": "learning curves"}), os_errors(path):
        figure = matplotlib.figure.Figure(figsize=(4 * len(tasks), 3), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            _draw_task(axes, [point for point in points if point.task == task])
            axes.set_title(task.replace("_", " "))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_task(axes: Axes, points: Sequence[CurvePoint]) -> None:
    for number, role in enumerate(dict.fromkeys(point.role for point in points)):
        mine = [point for point in points if point.role == role]
        for seed in dict.fromkeys(point.seed for point in mine):
            run = [(point.step, point.reward) for point in mine if point.seed == seed]
            axes.plot(*zip(*run, strict=True), color=f"C{number}", linewidth=0.7, alpha=0.5)
        mean = zip(*mean_curve(mine), strict=True)
        axes.plot(*mean, color=f"C{number}", linewidth=2, label=role)
    # From 0 on, or a small rise would look like a large one.
    axes.set_ylim(bottom=min(0.0, *(point.reward for point in points)))
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward")
    axes.legend()


def _matplotlib() -> ModuleType:
    try:
        matplotlib = import_module("matplotlib")
        import_module("matplotlib.figure")  # which the package doesn't import by itself
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError(
            "matplotlib isn't installed; drawing comes with an extra: pip install 'selfplay-ray[plot]'"
        ) from None
    return matplotlib
