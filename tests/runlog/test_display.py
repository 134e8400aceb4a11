"""What a run shows: a live view for a person, plain lines for everything else, and a sane terminal afterwards."""

from __future__ import annotations

import io
import logging
import math
import os
import pty
import select
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.display import Display, step_line, summary
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.live_view import LiveView
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.types import (
    Completion,
    GenerateResult,
    Message,
    PolicySpan,
    RoleStats,
    Rollout,
    Step,
)


def metrics(step: int, failed: int = 0, dropped: int = 0, **means: float) -> StepMetrics:
    return StepMetrics(
        step=step,
        version=step,
        time=0.0,
        rewards={role: RoleStats(8, mean, 0.1) for role, mean in means.items()},
        finished=72,
        failed=failed,
        dropped_stale=dropped,
        staleness_mean=0.5,
        staleness_max=1,
        tokens_per_second=211.7,
        learner_wait_seconds=0.44,
        engine_wait_seconds=0.06,
        values={},
    )


def evaluated(step: int, mean: float, low: float = 0.1, high: float = 0.9, **means: float) -> StepMetrics:
    """A step with an evaluation of the Solver."""
    values = {"eval/reward/Solver": mean, "eval/reward_low/Solver": low, "eval/reward_high/Solver": high}
    return replace(metrics(step, **means), values=values)


def tree(rollout_id: str, text: str) -> GenerateResult:
    completion = Completion(text, (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    step = Step("Solver", 0, [Message(role="user", content="2 + 3?")], completion, 1.0)
    return GenerateResult(Rollout(rollout_id, "solve", steps=[step], rewards={"Solver": 1.0}))


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capable one, whatever the tests themselves run in."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path)


def test_a_plain_line_has_rewards_their_change_speed_lag_and_wait() -> None:
    before = metrics(2, Solver=0.16, Proposer=0.1)
    line = step_line(metrics(3, Solver=0.21, Proposer=0.1), 40, before)
    assert line == "step 3/40  Solver 0.21 (+0.05)  Proposer 0.10  212 tok/s  lag 1  wait 0.4s"


def test_a_plain_line_counts_what_was_dropped_and_what_failed() -> None:
    assert step_line(metrics(1, failed=2, dropped=3, Solver=-0.5), 40, None) == (
        "step 1/40  Solver -0.50  212 tok/s  lag 1  wait 0.4s  3 stale  2 failed"
    )


def test_a_plain_line_counts_what_nobody_could_score() -> None:
    line = step_line(replace(metrics(1, Solver=-0.5), values={"credit/unscored": 6.0}), 40, None)
    assert line == "step 1/40  Solver -0.50  212 tok/s  lag 1  wait 0.4s  6 unscored"


def test_a_plain_line_says_why_a_step_is_less_than_it_was_to_be() -> None:
    odd = {"credit/incomplete_groups": 1.0, "train/extra_batches": 2.0, "train/nonfinite": 1.0}
    line = step_line(replace(metrics(1, Solver=-0.5), values=odd), 40, None)
    assert line.endswith(
        "wait 0.4s  1 groups incomplete  2 extra batches  not applied: the gradient is not finite"
    )


def test_an_evaluation_is_told_with_its_interval() -> None:
    line = step_line(evaluated(2, 0.25, 0.2, 0.31, Solver=0.21), 40, None)
    assert line == "step 2/40  Solver 0.21  212 tok/s  lag 1  wait 0.4s  eval Solver 0.25 [0.20, 0.31]"


def test_before_the_first_step_there_is_but_an_evaluation() -> None:
    assert step_line(evaluated(0, 0.25, math.nan, math.nan), 40, None) == "step 0/40  eval Solver 0.25"


def test_the_summary_has_the_first_evaluation_and_the_last() -> None:
    history = [
        evaluated(0, 0.2),
        metrics(1, Solver=0.5),
        evaluated(2, 0.4, Solver=0.5),
        evaluated(4, 0.6, 0.5, 0.7),
    ]
    assert summary(history).splitlines()[-2:] == [
        "evaluation                step 0                step 4",
        "Solver         0.20 [0.10, 0.90]     0.60 [0.50, 0.70]",
    ]
    assert "evaluation" not in summary(history[:2])


def test_the_live_view_shows_the_last_evaluation() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = LiveView(console, "run", 4, [evaluated(0, 0.2)], lambda: 0.0)
    shown = capture(console, view)
    assert "step 0/4" in shown
    assert "Solver 0.20 [0.10, 0.90] at step 0" in shown
    view.step(evaluated(1, 0.3, Solver=0.5))
    view.step(metrics(2, Solver=0.5))
    assert "Solver 0.30 [0.10, 0.90] at step 1" in capture(console, view)


def capture(console: Console, view: LiveView) -> str:
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_without_a_terminal_there_is_one_line_a_step_and_nothing_else(log: RunLog) -> None:
    output = io.StringIO()
    console = Console(file=output, width=40)
    with Display(RunConfig(num_steps=2), log, console) as display:
        display.log_step(metrics(1, Solver=0.5))
        display.note("warning: \x1b[31mtwo\nlines, [bold]one[/bold] of them long " + "x" * 100)
        display.log_step(metrics(2, Solver=0.25))
    assert output.getvalue().splitlines() == [
        f"run {log.folder}",
        "step 1/2  Solver 0.50  212 tok/s  lag 1  wait 0.4s",
        "warning: [31mtwo lines, [bold]one[/bold] of them long " + "x" * 100,
        "step 2/2  Solver 0.25 (-0.25)  212 tok/s  lag 1  wait 0.4s",
    ]


def test_what_the_library_logs_is_shown_while_the_display_is_open(log: RunLog) -> None:
    output = io.StringIO()
    logger = logging.getLogger("selfplay_ray.somewhere")
    with Display(RunConfig(), log, Console(file=output)):
        logger.warning("episode %s failed", "3/0/1")
    logger.warning("too late")
    assert output.getvalue().splitlines()[1:] == ["warning: episode 3/0/1 failed"]


@pytest.mark.parametrize("live", [False, True])
def test_verbose_shows_each_tree_once_as_text(log: RunLog, live: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=live, width=80, height=40)
    with Display(RunConfig(verbose=True, num_steps=3), log, console, live=live) as display:
        display.log_step(metrics(1))  # nothing was said yet
        log.write_results(1, [tree("0", "skipped"), tree("1", "\x1b]0;owned\x07[red]5[/red]\nstep 3/3")])
        display.log_step(metrics(2))
        display.log_step(metrics(3))  # and nothing new since
    log.close()
    written = output.getvalue()
    assert written.count("solve 1  Solver 1.00") == 1
    assert "Solver | ]0;owned[red]5[/red]" in written
    assert "       | step 3/3" in written
    assert "\x1b]0" not in written
    assert "\x07" not in written
    assert "skipped" not in written


def test_without_verbose_nothing_that_was_said_is_shown(log: RunLog) -> None:
    output = io.StringIO()
    log.write_results(1, [tree("1", "a secret")])
    with Display(RunConfig(), log, Console(file=output)) as display:
        display.log_step(metrics(1))
    log.close()
    assert "secret" not in output.getvalue()


def test_an_encoding_that_lacks_a_letter_gets_a_question_mark(log: RunLog) -> None:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with Display(RunConfig(num_steps=1), log, Console(file=output)) as display:
        display.log_step(metrics(1, Löser=0.5))
    assert b"step 1/1  L?ser 0.50" in raw.getvalue()


def test_the_summary_compares_the_first_five_steps_with_the_last_five() -> None:
    history = [metrics(i + 1, Solver=i / 10, Proposer=0.3) for i in range(12)]
    # Solver: 0.0 to 0.4, mean 0.2; 0.7 to 1.1, mean 0.9.
    assert summary(history).splitlines() == [
        "mean reward  first 5 steps   last 5 steps  difference",
        "Solver               0.200          0.900      +0.700",
        "Proposer             0.300          0.300      +0.000",
    ]


def test_the_summary_of_a_short_run_says_how_many_steps_it_compares() -> None:
    assert summary([metrics(1, Solver=0.5)]).splitlines() == [
        "mean reward     first step      last step  difference",
        "Solver               0.500          0.500      +0.000",
    ]
    assert "first 3 steps" in summary([metrics(i, Solver=0.5) for i in range(7)])
    assert summary([]) == "no training step was taken"


PROGRAM = """
import fcntl, signal, termios, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run with nohup, or behind &, were told to ignore it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the session's own terminal, so that a typed Ctrl-C arrives as a signal
from pathlib import Path
from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.display import Display
from selfplay_ray.runlog.folder import RunLog
with Display(RunConfig(), RunLog(Path("runs/kuhn"))) as display:
    display.note("ready")
    for _ in range(600):
        time.sleep(0.1)
"""


def in_a_terminal(folder: Path, **environment: str) -> tuple[str, bool]:
    """What PROGRAM writes to a terminal until Ctrl-C is typed, and whether the terminal's modes survive it."""
    leader, follower = pty.openpty()
    modes = termios.tcgetattr(follower)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
    )
    try:
        output = read_until(leader, b"ready")
        os.write(leader, b"\x03")
        assert process.wait(30) != 0
        output += read_rest(leader)
        return output.decode(), termios.tcgetattr(follower) == modes
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)


def read_until(descriptor: int, mark: bytes) -> bytes:
    output = b""
    deadline = time.monotonic() + 30
    while mark not in output:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{mark!r} never came, but {output!r}"
        output += os.read(descriptor, 4096)
    return output


def read_rest(descriptor: int) -> bytes:
    output = b""
    while select.select([descriptor], [], [], 0.2)[0]:
        output += os.read(descriptor, 4096)
    return output


def test_ctrl_c_in_a_terminal_brings_the_cursor_back(tmp_path: Path) -> None:
    output, modes_survived = in_a_terminal(tmp_path)
    assert modes_survived
    assert "waiting for the first step" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_terminal_that_nobody_watches_or_that_can_do_nothing_gets_lines(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    output, _ = in_a_terminal(tmp_path, **environment)
    assert output.splitlines()[:2] == ["run runs/kuhn", "ready"]
    assert "\x1b" not in output


def test_forced_colours_do_not_turn_a_pipe_into_a_terminal(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    output = io.StringIO()
    with Display(RunConfig(num_steps=1), log, Console(file=output)) as display:
        display.log_step(metrics(1, Solver=0.5))
    assert "\x1b" not in output.getvalue()
