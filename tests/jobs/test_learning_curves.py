"""Tasks trained as ordinary runs, and what is kept of them: tables, and a picture if one can be drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import REPOSITORY

from selfplay_ray.jobs import learning_curves
from selfplay_ray.runlog.curves import read_curves

JOB = [sys.executable, str(REPOSITORY / "jobs" / "learning_curves.py")]
Curves = Callable[..., str]


@pytest.fixture
def curves(tmp_path: Path, environment: dict[str, str], tiny: Path) -> Curves:
    """Run the job on small batches of the tiny model, and return what it said."""
    (tmp_path / "small.toml").write_text(
        f'model_path = "{tiny}"\nbatch_size = 4\nmin_trainable = 0\ngroup_size = 2\nmax_staleness = 0\n'
    )

    def run(*flags: str, code: int = 0) -> str:
        command = [*JOB, "--num-steps", "2", "--config", "small.toml", *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def check_tables(folder: Path, role_of: dict[str, str]) -> None:
    for task, role in role_of.items():
        found = read_curves(folder / "docs" / "curves" / f"{task}.csv")
        assert [(p.task, p.seed, p.step, p.role) for p in found] == [(task, 1, step, role) for step in (1, 2)]
        run = folder / "runs" / f"curve-{task}-2-steps-seed-1"
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [p.reward for p in found] == [round(step[f"reward/{role}"], 4) for step in steps]
        assert [step["episodes/finished"] for step in steps] == [4, 4]


def test_a_table_for_a_task(curves: Curves, tmp_path: Path):
    output = curves("--tasks", "digit_sums", "--seeds", "1")
    assert output.count("step 2/2") == 1
    check_tables(tmp_path, {"digit_sums": "Adder"})
    # What was trained is not trained again.
    assert "step" not in curves("--tasks", "digit_sums", "--seeds", "1")


def test_a_game_of_textarenas(curves: Curves, tmp_path: Path):
    pytest.importorskip("textarena")
    pytest.importorskip("matplotlib")
    curves("--tasks", "textarena", "--seeds", "1", "--plot")
    check_tables(tmp_path, {"textarena": "Player 0"})
    assert (tmp_path / "docs" / "curves" / "learning_curves.svg").read_text().startswith("<?xml")


def test_a_training_that_fails_ends_it(curves: Curves, tmp_path: Path):
    output = curves("--tasks", "chess", "--seeds", "3", code=1)
    assert (
        output.splitlines()[-1] == "selfplay: training chess from seed 3 failed with exit code 2; see above"
    )
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "selfplay: there is nothing to do: give --tasks to train, or --plot"),
        (["--task", "x"], "selfplay: unknown flag --task; did you mean --tasks?"),
        (["--plot"], "selfplay: there are no learning curves to draw; name tasks to train first"),
    ],
)
def test_what_is_not_possible_is_one_sentence(
    argv: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert learning_curves.run_command(learning_curves.main, argv) == 2
    assert capsys.readouterr().err == sentence + "\n"
