"""Train tasks from several seeds, and keep their learning curves as CSV: a table each, and a picture of all.

python jobs/learning_curves.py --tasks digit_sums --seeds 0 1 2 --num-steps 30 --out docs/curves --plot

A run that was finished before is read, not trained again; without tasks, --plot draws the tables that are there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from selfplay_ray.command import run_command
from selfplay_ray.config_sources import SentenceParser
from selfplay_ray.errors import ConfigError, SelfPlayError
from selfplay_ray.runlog.curves import curve_points, draw_curves, read_curves, write_curves
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.metrics import StepMetrics

PICTURE = "learning_curves.svg"


def main(argv: Sequence[str]) -> int:
    """Train what ``argv`` names, write its curves, and draw them.

    Raises:
        ConfigError: an unknown flag, or nothing to do.
        SelfPlayError: a training failed; the tables before it have been written.
    """
    options = _parse(argv)
    for task in options.tasks:
        points = [
            point
            for seed in options.seeds
            for point in curve_points(task, seed, _trained(task, seed, options))
        ]
        write_curves(options.out / f"{task}.csv", points)
    if options.plot:
        tables = sorted(options.out.glob("*.csv"))
        draw_curves(options.out / PICTURE, [point for table in tables for point in read_curves(table)])
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    about = (
        "Train tasks from several seeds, and keep their learning curves: a table each, and a picture of all."
    )
    parser = SentenceParser(prog="learning_curves.py", description=about, allow_abbrev=False)
    add = parser.add_argument
    add("--tasks", nargs="+", default=[], metavar="TASK", help="What to train, as `selfplay train` names it.")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="SEED",
        help="A run for each (default: 0 1 2).",
    )
    add("--num-steps", type=int, default=30, metavar="INT", help="Steps of each run (default: 30).")
    add("--out", type=Path, default=Path("docs/curves"), metavar="PATH", help="Where the tables go.")
    add("--runs", type=Path, default=Path("runs"), metavar="PATH", help="Where the runs go.")
    add("--config", type=Path, metavar="FILE", help="TOML file with other settings, for every run.")
    add("--plot", action="store_true", help=f"Draw {PICTURE} beside the tables (needs the extra `plot`).")
    known = ["--tasks", "--seeds", "--num-steps", "--out", "--runs", "--config", "--plot"]
    options = parser.parse_all(argv, known=known)
    if not options.tasks and not options.plot:
        raise ConfigError("there is nothing to do: give --tasks to train, or --plot")
    return options


def _trained(task: str, seed: int, options: argparse.Namespace) -> list[StepMetrics]:
    """The steps of the run of ``task`` from ``seed``, trained now unless it is there."""
    log = RunLog(options.runs / f"curve-{task}-{options.num_steps}-steps-seed-{seed}")
    history = read_metrics(log.metrics_path) if log.metrics_path.exists() else []
    if len(history) == options.num_steps:
        return history
    command = [sys.executable, "-m", "selfplay_ray", "train", task, "--seed", str(seed)]
    command += ["--num-steps", str(options.num_steps), "--name", log.name, "--output-dir", str(options.runs)]
    command += ["--config", str(options.config)] if options.config else []
    if code := subprocess.run(command).returncode:  # noqa: S603
        raise SelfPlayError(f"training {task} from seed {seed} failed with exit code {code}; see above")
    return read_metrics(log.metrics_path)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
