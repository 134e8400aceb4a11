"""What was asked for is wrong: one sentence on stderr that says what, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from selfplay_ray import cli


@pytest.fixture
def refused(tmp_path: Path, environment: dict[str, str]) -> Callable[..., str]:
    """Run ``selfplay`` and return the one sentence it says."""

    def run(code: int, *argv: str) -> str:
        command = [sys.executable, "-m", "selfplay_ray", *argv]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        (line,) = done.stderr.splitlines()
        return line.removeprefix("selfplay: ")

    return run


def test_the_model_is_unknown(refused, tmp_path: Path):
    sentence = refused(1, "train", "proposer_solver", "--model-path", "smollm3")
    assert sentence == (
        "unknown model 'smollm3': it is neither 'smollm2-135m', nor a folder that exists, nor a hub id like org/name"
    )
    assert list(tmp_path.iterdir()) == []  # no run was begun


def test_the_model_is_a_folder_without_a_model(refused, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    sentence = refused(1, "train", "proposer_solver", "--model-path", "empty")
    assert sentence == "not a model folder: empty lacks config.json"


def test_the_name_is_taken(refused, tmp_path: Path, tiny: Path):
    taken = tmp_path / "runs" / "mine"
    taken.mkdir(parents=True)
    (taken / "config.toml").touch()
    sentence = refused(2, "train", "proposer_solver", "--model-path", str(tiny), "--name", "mine")
    assert sentence.startswith("runs/mine holds a run already")


def test_the_file_has_an_unknown_key(refused, tmp_path: Path):
    (tmp_path / "run.toml").write_text("nmu_steps = 3\n")
    sentence = refused(2, "train", "proposer_solver", "--config", "run.toml")
    assert sentence == "unknown key nmu_steps in run.toml; did you mean num_steps?"


# The same, without a process for each.


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size 0 is not possible: it must be greater than or equal to 1"),
        (
            ["--n-solver-rollouts", "1"],
            "--n-solver-rollouts 1 is not possible: it must be greater than or equal to 2",
        ),
        (["--lr", "fast"], "--lr fast is not possible: it must be a valid number"),
        (["--error-budget", "1.5"], "--error-budget 1.5 is not possible: it must be less than or equal to 1"),
        (["--name", "../mine"], "--name ../mine is not possible: it must match pattern"),
        (["--name", ".."], "a run can't be named '..', because its folder is named the same"),
        (["--num-stesp", "3"], "unknown flag --num-stesp; did you mean --num-steps?"),
        (["--config", "none.toml"], "configuration file none.toml can't be read: No such file or directory"),
    ],
)
def test_a_value_that_is_not_possible(
    argv: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "proposer_solver", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selfplay: {sentence}")
    assert list(tmp_path.rglob("*")) == []
