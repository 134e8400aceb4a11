"""The live view: what stands in it, at every width, and that nothing in it is taken for markup."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import pytest
from rich.cells import cell_len
from rich.console import Console

from selfplay_ray.runlog.live_view import LiveView, duration, sparkline
from selfplay_ray.runlog.metrics import StepMetrics
from selfplay_ray.types import RoleStats


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def metrics(
    step: int, failed: int = 0, dropped: int = 0, others: Mapping[str, float] | None = None, **means: float
) -> StepMetrics:
    return StepMetrics(
        step=step,
        version=step,
        time=0.0,
        rewards={role: RoleStats(8, mean, 0.1) for role, mean in {**means, **(others or {})}.items()},
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


def a_view(clock: Clock, width: int = 80, steps: int = 40, title: str = "runs/kuhn") -> LiveView:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None)
    return LiveView(console, title, steps, [], clock)


def lines(view: LiveView, width: int = 80) -> list[str]:
    """The view as it would be drawn now, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get().splitlines()


def row(view: LiveView, label: str, width: int = 80) -> str:
    (found,) = [line for line in lines(view, width) if line.strip("│ ").startswith(label)]
    return " ".join(found.strip("│ ").split())


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capable one, whatever the tests themselves run in."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_the_first_step_it_says_what_it_waits_for(clock: Clock) -> None:
    view = a_view(clock)
    clock.now += 61
    assert row(view, "step 0/40").endswith("1:01, waiting for the first step")


def test_the_rest_is_estimated_from_the_pace_of_the_last_ten_steps(clock: Clock) -> None:
    view = a_view(clock)
    clock.now += 100  # the first step compiles and loads
    view.step(metrics(1, Solver=0.0))
    assert row(view, "step 1/40").endswith("1:40, about 1:05:00 left")  # 39 x 100 s
    for step in range(2, 12):
        clock.now += 10
        view.step(metrics(step, Solver=0.0))
    assert row(view, "step 11/40").endswith("3:20, about 4:50 left")  # 29 x 10 s, the first is forgotten
    clock.now += 4
    assert row(view, "step 11/40").endswith("3:24, about 4:46 left")


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    view = a_view(clock, steps=1)
    clock.now += 5
    view.step(metrics(1))
    assert row(view, "step 1/1").endswith("0:05, done")


def test_a_role_has_its_reward_the_means_of_first_and_last_five_and_its_trend(clock: Clock) -> None:
    view = a_view(clock)
    for i in range(8):
        view.step(metrics(i + 1, Solver=i / 10))
    # first 5: 0.0 to 0.4, mean 0.2; last 5: 0.3 to 0.7, mean 0.5; eight values, one bar each.
    assert row(view, "Solver") == "Solver 0.70 0.20 0.50 ▁▂▃▄▅▆▇█"


def test_a_role_that_was_not_scored_in_a_step_keeps_its_past(clock: Clock) -> None:
    view = a_view(clock)
    view.step(metrics(1, Solver=0.5, Proposer=1.0))
    view.step(metrics(2, Solver=0.5))
    assert row(view, "Proposer") == "Proposer - 1.00 1.00 ▄"


def test_speed_staleness_waits_and_failures_are_there(clock: Clock) -> None:
    view = a_view(clock)
    view.step(metrics(1, failed=2, dropped=3))
    view.step(metrics(2, failed=1))
    assert row(view, "generating") == "generating 212 tokens/s"
    assert row(view, "lag") == "lag 0.5 versions, at most 1, 3 records too stale so far"
    assert row(view, "waiting") == "waiting learner 0.4 s, engines 0.1 s"
    assert row(view, "episodes") == "episodes 72 in this step, 3 failed so far"


def test_a_resumed_run_shows_its_past(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    past = [metrics(1, failed=1, Solver=0.0), metrics(2, Solver=1.0)]
    view = LiveView(console, "runs/kuhn", 4, past, clock)
    assert row(view, "Solver") == "Solver 1.00 0.50 0.50 ▁█"
    assert "step 2/4" in row(view, "step")


def test_markup_in_names_and_notes_is_text(clock: Clock) -> None:
    view = a_view(clock, title="runs/[red]x[/red]")
    view.step(metrics(1, others={"[bold]A[/bold]": 0.5, "\x1b[31mB": 0.5}))
    view.note("[link=http://x]note[/link] [/]")
    drawn = "\n".join(lines(view))
    assert "runs/[red]x[/red]" in drawn
    assert "[bold]A[/bold]" in drawn
    assert "\x1b" not in drawn
    assert "[link=http://x]note[/link] [/]" in drawn


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits_the_width_and_leaves_room_for_the_echo_of_ctrl_c(clock: Clock, width: int) -> None:
    view = a_view(clock, width)
    for i in range(300):
        view.step(metrics(i + 1, dropped=1, Solver=i / 300, others={"A role of a very long name": 0.5}))
    view.note("warning: " + "word " * 100)
    drawn = lines(view, width)
    assert {cell_len(line) for line in drawn} == {width - 2}
    assert len(drawn) <= 15
    assert row(view, "Solver", width).endswith("█")


def test_what_is_drawn_goes_away_with_the_cursor_back_and_samples_stay(clock: Clock) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=30)
    view = LiveView(console, "runs/kuhn", 4, [], clock)
    view.start()
    view.step(metrics(1, Solver=0.5))
    view.sample(["  Solver | [bold]5[/bold]"])
    view.stop()
    written = output.getvalue()
    assert "Solver | [bold]5[/bold]" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0.0, 1.0], 10) == "▁█"
    # Eight levels, 0 to 7: -1 -> 0, 0 -> 3.5, rounded up to 4, 1 -> 7.
    assert sparkline([-1.0, 0.0, 1.0], 10) == "▁▅█"
    assert sparkline([], 10) == ""
    assert sparkline([1.0], 0) == ""


def test_a_sparkline_averages_neighbours_to_fit() -> None:
    # (0, 2) -> 1, (3, 5) -> 4, (9, 9) -> 9; heights 0, 3/8 and 1 of seven: 0, 2.6, 7.
    assert sparkline([0.0, 2.0, 3.0, 5.0, 9.0, 9.0], 3) == "▁▄█"
    assert len(sparkline([0.1] * 1001, 30)) == 30


def test_noise_is_level_and_what_is_no_number_is_a_gap() -> None:
    assert sparkline([0.5, 0.509, 0.5], 10) == "▄▄▄"
    assert sparkline([0.0, math.nan, 1.0, math.inf], 10) == "▁ █ "
    assert sparkline([math.nan], 10) == " "


def test_durations() -> None:
    assert [duration(s) for s in (-1, 0, 59.9, 61, 3600, 36_061)] == [
        "0:00",
        "0:00",
        "0:59",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]
