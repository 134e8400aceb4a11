"""The live view of a run in a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean as mean

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfplay_ray.runlog.evaluations import evaluated
from selfplay_ray.runlog.metrics import SUMMARY_STEPS, StepMetrics
from selfplay_ray.runlog.plain_text import one_line

BARS = "▁▂▃▄▅▆▇█"
PACE_STEPS = 10  # the estimate of what is left goes by the last steps: the first ones warm up
REFRESH_PER_SECOND = 4


class LiveView:
    """Draws the run so far in place, four times a second, and samples and logs above it."""

    def __init__(
        self,
        console: Console,
        title: str,
        num_steps: int,
        history: Sequence[StepMetrics],
        clock: Callable[[], float],
    ) -> None:
        self._console = console
        self._title = title
        self._num_steps = num_steps
        self._history: list[StepMetrics] = []
        self._evaluation = ""
        for metrics in history:
            self._keep(metrics)
        self._failed = sum(metrics.failed for metrics in history)
        self._dropped = sum(metrics.dropped_stale for metrics in history)
        self._clock = clock
        self._started = clock()
        self._step_ended = self._started
        self._durations: list[float] = []
        self._note = ""
        self._live = Live(self, console=console, refresh_per_second=REFRESH_PER_SECOND)

    def start(self) -> None:
        self._started = self._step_ended = self._clock()
        self._live.start(refresh=True)

    def step(self, metrics: StepMetrics) -> None:
        now = self._clock()
        self._durations.append(now - self._step_ended)
        self._step_ended = now
        self._failed += metrics.failed
        self._dropped += metrics.dropped_stale
        self._keep(metrics)
        self._live.refresh()

    def _keep(self, metrics: StepMetrics) -> None:
        self._history.append(metrics)
        if rewards := evaluated(metrics.values):
            parts = ", ".join(f"{one_line(role)} {reward}" for role, reward in rewards.items())
            self._evaluation = f"{parts} at step {metrics.step}"

    def note(self, line: str) -> None:
        self._note = line

    def sample(self, lines: Iterable[str]) -> None:
        for line in ("", *lines):
            self._console.print(Text(line, style="dim"))

    def stop(self) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - len("^C")  # which the terminal echoes, and a full line would make it wrap
        parts: list[RenderableType] = [self._progress()]
        if self._history:
            parts += [Text(), self._rewards(width), Text(), self._facts(self._history[-1])]
        if self._note:
            parts.append(Text(self._note, style="yellow", no_wrap=True, overflow="ellipsis"))
        title = Text(one_line(self._title))
        yield Panel(Group(*parts), title=title, title_align="left", border_style="dim", width=width)

    def _progress(self) -> RenderableType:
        done = self._history[-1].step if self._history else 0
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=self._num_steps, completed=done)
        row.add_row(Text(f"step {done}/{self._num_steps}", style="bold"), bar, Text(self._times(done)))
        return row

    def _times(self, done: int) -> str:
        elapsed = duration(self._clock() - self._started)
        if not self._durations:
            return f"{elapsed}, waiting for the first step"
        recent = self._durations[-PACE_STEPS:]
        pace = mean(recent)
        # Time already spent on the step that is under way is no longer left.
        left = max(0.0, pace * (self._num_steps - done) - (self._clock() - self._step_ended))
        return f"{elapsed}, about {duration(left)} left" if done < self._num_steps else f"{elapsed}, done"

    def _rewards(self, width: int) -> Table:
        """One row a role: its reward at the last step, the means of the first and last five, the whole run."""
        table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="dim")
        table.add_column("role", no_wrap=True, max_width=max(8, width // 4))
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column(f"first {SUMMARY_STEPS}", justify="right", no_wrap=True)
        table.add_column(f"last {SUMMARY_STEPS}", justify="right", no_wrap=True)
        table.add_column("over the run", ratio=1, no_wrap=True)
        history = list(self._history)
        for role in dict.fromkeys(role for metrics in history for role in metrics.rewards):
            means = [m.rewards[role].mean for m in history if role in m.rewards]
            now = f"{means[-1]:.2f}" if role in history[-1].rewards else "-"
            first, recent = mean(means[:SUMMARY_STEPS]), mean(means[-SUMMARY_STEPS:])
            name = Text(one_line(role), style="bold")
            table.add_row(name, Text(now), Text(f"{first:.2f}"), Text(f"{recent:.2f}"), _Trend(means))
        return table

    def _facts(self, last: StepMetrics) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        table.add_row("generating", Text(f"{last.tokens_per_second:.0f} tokens/s"))
        stale = f", {self._dropped} records too stale so far" if self._dropped else ""
        table.add_row("lag", Text(f"{last.staleness_mean:.1f} versions, at most {last.staleness_max}{stale}"))
        learner, engine = last.learner_wait_seconds, last.engine_wait_seconds
        table.add_row("waiting", Text(f"learner {learner:.1f} s, engines {engine:.1f} s"))
        failed = Text(f"{self._failed} failed so far", style="red" if self._failed else "")
        table.add_row("episodes", Text(f"{last.finished} in this step, ").append_text(failed))
        if self._evaluation:
            table.add_row("evaluation", Text(self._evaluation))
        return table


class _Trend:
    """A sparkline as wide as there is room."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self._values, options.max_width), style="green", no_wrap=True, end="")


def sparkline(values: Sequence[float], width: int) -> str:
    """``values`` as at most ``width`` bars from the lowest to the highest, neighbours averaged to fit.

    Values that differ by less than a hundredth are drawn level: noise is no trend.
    """
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)] if count else []
    means = [mean(values[start:end]) for start, end in pairwise(edges)]
    known = [value for value in means if math.isfinite(value)]
    low, spread = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return "".join(_bar(value - low, spread) for value in means)


def _bar(height: float, spread: float) -> str:
    if not math.isfinite(height):
        return " "
    if spread < 0.01:
        return BARS[3]
    return BARS[int(height / spread * (len(BARS) - 1) + 0.5)]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
