"""A run that is killed again and again, whole and resumed each time, or one process at a time and never resumed, ends
as one that was left alone: to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from killable_run import CHECKPOINT_EVERY, EVAL_EVERY, NUM_STEPS, POINTS
from length import LONG

from selfplay_ray.lora import load_adapter
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.rollouts import read_rollouts
from selfplay_ray.scheduling.coordinator_state import decode_state
from selfplay_ray.training.checkpoint import read_checkpoint
from selfplay_ray.training.checkpoint_folder import checkpoint_path, checkpoint_versions

PROGRAM = Path(__file__).with_name("killable_run.py")

MEASURED = ("time/", "generation/", "train/seconds", "train/ratio_lag0")
"""What no two runs have in common: times, and how the sampler's last bits were rounded."""

FEW_POINTS = ("after the acknowledgement", "in a checkpoint")
"""A fraction of the time. ``make chaos`` kills at all of them, in a run twice as long."""


SAME_STEP = ("in an engine", "in a judge", "in an evaluation")
"""These come in the step of the point before."""


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory, tiny: Path, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "left-alone"
    assert run(folder, tiny, environment) == 0
    return folder


def run(folder: Path, model: Path, environment: dict[str, str], who: str = "all", *points: str) -> int:
    """Run, or go on, until the end or where all die; the exit code."""
    process = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(model), who, *points],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        start_new_session=True,
    )
    if process.returncode not in (0, -9):
        raise AssertionError(process.stdout + process.stderr)
    return process.returncode


def lossy(answers: bool) -> dict[str, str]:
    """Ray's own fault injection: so many calls of every actor's that never arrive, or are never answered."""
    share = {"resp_failure_prob" if answers else "req_failure_prob": 10, "num_failures": 60 if LONG else 12}
    return {
        "LOSSY": json.dumps({"CoreWorkerService.grpc_client.PushTask": share}),
        # Else whoever was asked waits for half a minute for the call that never came, in case it is only late.
        "RAY_actor_scheduling_queue_max_reorder_wait_seconds": "0",
    }


def numbers(folder: Path) -> list[dict[str, float]]:
    """Its metrics, but for what is measured."""
    steps = read_metrics(RunLog(folder).metrics_path)
    return [
        {name: value for name, value in metrics.flat().items() if not name.startswith(MEASURED)}
        for metrics in steps
    ]


def written(folder: Path) -> list[tuple[int, bool, str]]:
    """Whose trees are among its rollouts."""
    rows = read_rollouts(RunLog(folder).rollouts_path)
    return sorted((row.batch, row.evaluation, row.tree.id) for row in rows)


def arena_state(folder: Path) -> object:
    with ReplayBuffer(RunLog(folder).replay_path) as journal:
        content = journal.state()
    assert content is not None
    return decode_state(content)


def assert_same_run(folder: Path, other: Path) -> None:
    assert numbers(folder) == numbers(other)
    assert [one["step"] for one in numbers(folder)] == list(range(NUM_STEPS + 1))
    for version in range(1, NUM_STEPS + 1):
        ours, theirs = (load_adapter(RunLog(one).adapter_path(version)).weights for one in (folder, other))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), f"adapter {version} differs"
    ours, theirs = (
        read_checkpoint(checkpoint_path(RunLog(one).checkpoints_dir, NUM_STEPS)) for one in (folder, other)
    )
    assert ours.optimizer.keys() == theirs.optimizer.keys()
    assert all(np.array_equal(ours.optimizer[name], theirs.optimizer[name]) for name in ours.optimizer)
    assert arena_state(folder) == arena_state(other)
    with ReplayBuffer(RunLog(folder).replay_path) as journal:
        assert journal.counts().queued == journal.counts().leased == 0
        assert journal.counts().acked_roots == NUM_STEPS * 4


def step_of(point: str, number: int) -> int:
    """The step at which the ``number``-th point is: a later one each time, or one that is taken again. None is the
    last: after it there is nothing to go on with."""
    if "evaluation" in point:
        return max(EVAL_EVERY, number - number % EVAL_EVERY)
    return number + -number % CHECKPOINT_EVERY if "checkpoint" in point else number


@pytest.mark.timeout(1200)
def test_killed_at_many_points_of_the_loop(
    tmp_path: Path, tiny: Path, environment: dict[str, str], left_alone: Path
):
    folder = tmp_path / "killed"
    number = 0
    for point in POINTS if LONG else FEW_POINTS:
        number += point not in SAME_STEP
        step = step_of(point, number)
        died = run(folder, tiny, environment, "all", f"{point}={step}")
        assert died == -9, f"{point} of step {step} was not reached"
    assert run(folder, tiny, environment) == 0
    assert_same_run(folder, left_alone)
    assert checkpoint_versions(RunLog(folder).checkpoints_dir) == [NUM_STEPS - 2, NUM_STEPS]
    assert written(folder) == written(left_alone)


@pytest.mark.timeout(1200)
def test_each_process_killed_alone_at_every_point(
    tmp_path: Path, tiny: Path, environment: dict[str, str], left_alone: Path
):
    """Nobody resumes it, and what was logged is logged once."""
    folder = tmp_path / "killed"
    steps = {
        point: step_of(point, 1 + number * NUM_STEPS // (len(POINTS) + 1))
        for number, point in enumerate(POINTS)
    }
    assert run(folder, tiny, environment, "one", *(f"{point}={step}" for point, step in steps.items())) == 0
    deaths = {path.name for path in folder.with_name("killed-deaths").iterdir()}
    assert deaths == set(POINTS)
    assert_same_run(folder, left_alone)
    assert len(RunLog(folder).metrics_path.read_text().splitlines()) == NUM_STEPS + 1
    assert written(folder) == written(left_alone)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "answers", [True, False] if LONG else [True], ids=lambda yes: "answers" if yes else "requests"
)
def test_calls_that_are_lost_between_the_processes(
    answers: bool, tmp_path: Path, tiny: Path, environment: dict[str, str], left_alone: Path
):
    """`put`, `lease`, `ack` and `publish` among them."""
    folder = tmp_path / "lossy"
    assert run(folder, tiny, {**environment, **lossy(answers)}) == 0
    assert_same_run(folder, left_alone)
    assert len(RunLog(folder).metrics_path.read_text().splitlines()) == NUM_STEPS + 1
    assert written(folder) == written(left_alone)
