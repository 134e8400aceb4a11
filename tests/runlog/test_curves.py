"""Learning curves: what is in the table, what the picture says of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from selfplay_ray.errors import ConfigError, RunLogError
from selfplay_ray.runlog.curves import (
    CurvePoint,
    curve_points,
    draw_curves,
    mean_curve,
    read_curves,
    write_curves,
)
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.metrics import step_metrics
from selfplay_ray.types import RoleStats, RolloutGroup


def history(*rewards: dict[str, float]) -> list:
    return [
        step_metrics(
            step=step,
            version=step,
            time=0.0,
            groups=[RolloutGroup("g", 1, (), {role: RoleStats(4, m, 0.0) for role, m in means.items()}, {})],
            records=(),
            dropped_stale=0,
            train={},
            tokens_per_second=0.0,
            learner_wait_seconds=0.0,
            engine_wait_seconds=0.0,
        )
        for step, means in enumerate(rewards, 1)
    ]


def points(*rewards: float, seed: int = 0, task: str = "sums") -> list[CurvePoint]:
    return [CurvePoint(task, seed, step, "Adder", reward) for step, reward in enumerate(rewards, 1)]


def test_every_role_has_a_point_a_step():
    made = curve_points("game", 2, history({"B": 0.25, "A": -1 / 3}, {"A": 1.0}))
    assert made == [
        CurvePoint("game", 2, 1, "A", -0.3333),
        CurvePoint("game", 2, 1, "B", 0.25),
        CurvePoint("game", 2, 2, "A", 1.0),
    ]


def test_steps_are_counted_whole_also_when_they_come_out_of_a_file(tmp_path: Path):
    log = RunLog(tmp_path)
    for metrics in history({"A": 0.5}, {"A": 1.0}):
        log.log_step(metrics)
    log.close()
    write_curves(tmp_path / "a.csv", curve_points("game", 0, read_metrics(log.metrics_path)))
    assert read_curves(tmp_path / "a.csv") == [CurvePoint("game", 0, step, "A", step / 2) for step in (1, 2)]


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    path = tmp_path / "curves" / "sums.csv"
    write_curves(path, points(0.1, 0.25))
    assert path.read_text() == "task,seed,step,role,reward\nsums,0,1,Adder,0.1\nsums,0,2,Adder,0.25\n"
    assert read_curves(path) == points(0.1, 0.25)


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "task,seed,step,role,reward\nx,1,one,A,2\n", "task,seed,step,role,reward\nx,1\n"]
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(RunLogError, match=r"odd\.csv is no table of learning curves"):
        read_curves(path)


def test_a_mean_is_over_the_seeds_that_got_there():
    """Step 1: (0.1 + 0.3) / 2; step 2: only the first."""
    assert mean_curve([*points(0.1, 0.5), *points(0.3, seed=1)]) == [(1, pytest.approx(0.2)), (2, 0.5)]


def test_a_picture_has_a_panel_a_task_and_is_the_same_twice(tmp_path: Path):
    pytest.importorskip("matplotlib")
    data = [*points(0.1, 0.5), *points(0.3, 0.4, seed=1), *points(0.0, 1.0, task="reverse_word")]
    for name in ("one.svg", "two.svg"):
        draw_curves(tmp_path / name, data)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "<!-- reverse word -->" in drawn
    assert len(drawn) < 100_000
    # a thin line for each run, a thick one for each task's mean (and its sample in the legend)
    assert drawn.count("stroke-width: 0.7;") + drawn.count("stroke-opacity: 0.5; stroke-width: 0.7") >= 3
    assert drawn.count("stroke-width: 2;") == 4


def test_nothing_is_not_drawn(tmp_path: Path):
    with pytest.raises(ConfigError, match="no learning curves to draw"):
        draw_curves(tmp_path / "none.svg", [])


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[plot\]'"):
        draw_curves(tmp_path / "none.svg", points(0.1))
