from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfplay_ray
from selfplay_ray import cli, jobs
from selfplay_ray.command import run_command
from selfplay_ray.errors import ClusterError, ConfigError, UnknownNameError

HEAVY = ("mlx.core", "ray", "openai", "pydantic", "rich")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two tasks in a folder of jobs of their own."""
    (tmp_path / "train_tic_tac_toe.py").write_text("def main(argv):\n    print(*argv)\n    return 7\n")
    (tmp_path / "train_broken.py").write_text(
        "from selfplay_ray.errors import ConfigError\n"
        "def main(argv):\n    raise ConfigError('this is wrong\\nand this')\n"
    )
    (tmp_path / "evaluate.py").write_text("")
    monkeypatch.setattr(jobs, "__path__", [str(tmp_path)])
    yield
    for name in ("train_tic_tac_toe", "train_broken"):
        sys.modules.pop(f"selfplay_ray.jobs.{name}", None)


@pytest.mark.usefixtures("tasks")
def test_train_hands_its_arguments_to_the_job(capsys):
    assert cli.main(["train", "tic_tac_toe", "--num-steps", "3"]) == 7
    assert cli.main(["train", "tic-tac-toe"]) == 7
    assert capsys.readouterr().out == "--num-steps 3\n\n"


@pytest.mark.usefixtures("tasks")
def test_an_unknown_task_is_told_which_there_are(capsys):
    assert cli.main(["train", "chess"]) == 2
    assert capsys.readouterr().err == "selfplay: unknown task 'chess'; known: broken, tic_tac_toe\n"


@pytest.mark.usefixtures("tasks")
def test_each_sentence_of_an_error_is_a_line(capsys):
    assert cli.main(["train", "broken"]) == 2
    assert capsys.readouterr().err == "selfplay: this is wrong\nselfplay: and this\n"


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("argv", [[], ["--help"], ["train"], ["train", "--help"]])
def test_help_lists_the_tasks(argv: list[str], capsys):
    assert cli.main(argv) == 0
    assert "broken, tic_tac_toe" in capsys.readouterr().out


def test_an_unknown_command_is_told_which_there_are(capsys):
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'; known: train, eval, bench" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (UnknownNameError("role", "judge", {"solver"}), 2),
        (ClusterError("port 8265 is in use"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(error: BaseException, code: int):
    def main(argv):
        raise error

    assert run_command(main, []) == code


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main, [])


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["group_forc"],
            "unknown benchmark 'group_forc'; did you mean group_fork?; known: throughput, mixed_lengths",
        ),
        (["--repeats", "0"], "--repeats 0 is not possible: it must be at least 1"),
        (["--jsno"], "unknown flag --jsno; did you mean --json?"),
    ],
)
def test_bad_requests_for_benchmarks_get_one_sentence(argv: list[str], sentence: str, capsys):
    assert cli.main(["bench", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selfplay: {sentence}")


def test_the_module_runs_and_loads_nothing_heavy():
    script = (
        "import sys\n"
        "from selfplay_ray.cli import main\n"
        "assert main(['--version']) == 0 and main(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    version, *_, heavy = done.stdout.splitlines()
    assert (version, heavy) == (f"selfplay-ray {selfplay_ray.__version__}", "[]")


def test_python_dash_m(capfd):
    done = subprocess.run([sys.executable, "-m", "selfplay_ray", "--version"], check=False)
    assert done.returncode == 0
    assert capfd.readouterr().out.startswith("selfplay-ray ")
