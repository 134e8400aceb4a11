"""What a run shows while it goes on: a live view in a terminal, one line a step anywhere else."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.text import Text

from selfplay_ray.config import RunConfig
from selfplay_ray.runlog.evaluations import evaluated
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.live_view import LiveView
from selfplay_ray.runlog.metrics import StepMetrics, reward_changes
from selfplay_ray.runlog.plain_text import one_line
from selfplay_ray.runlog.rollouts import read_last_rollouts
from selfplay_ray.runlog.transcript import transcript

MIN_SAMPLE_WIDTH = 40


class View(Protocol):
    """One way to show a run: how it begins, what each step adds, a line now and then, how it ends."""

    def start(self) -> None: ...

    def step(self, metrics: StepMetrics) -> None: ...

    def note(self, line: str) -> None: ...

    def sample(self, lines: Iterable[str]) -> None: ...

    def stop(self) -> None: ...


class Display:
    """Shows a run's steps, its warnings, and with ``config.verbose`` a sample of what the agents said.

    A context manager; leaving it, also by Ctrl-C, gives the terminal back as it was. While it is open, what
    ``selfplay_ray`` logs is shown in it.

    Args:
        history: the steps a resumed run took before.
        live: whether to draw a live view; None asks ``wants_live``.
    """

    def __init__(
        self,
        config: RunConfig,
        log: RunLog,
        console: Console | None = None,
        *,
        history: Sequence[StepMetrics] = (),
        live: bool | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rollouts = log.rollouts_path if config.verbose else None
        self._shown: tuple[int, str] | None = None
        console = console or Console()
        self._width = max(MIN_SAMPLE_WIDTH, console.width - 2)
        live = wants_live(console) if live is None else live
        view = LiveView if live else PlainView
        self._view: View = view(console, str(log.folder), config.num_steps, history, clock)
        self._handler = _NoteHandler(self.note)

    def __enter__(self) -> Self:
        self._view.start()
        logging.getLogger("selfplay_ray").addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def log_step(self, metrics: StepMetrics) -> None:
        """Show a step; with ``verbose``, what was said in the tree that came in last."""
        self._view.step(metrics)
        if self._rollouts is None:
            return
        row = read_last_rollouts(self._rollouts)
        if row is not None and (row.batch, row.tree.id) != self._shown:
            self._shown = (row.batch, row.tree.id)
            self._view.sample(transcript(row.tree, self._width))

    def note(self, text: str) -> None:
        """Show ``text`` as the last line of the log."""
        self._view.note(one_line(text))

    def close(self) -> None:
        logging.getLogger("selfplay_ray").removeHandler(self._handler)
        self._view.stop()


class _NoteHandler(logging.Handler):
    """Gives what is logged to ``note``."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(f"{record.levelname.lower()}: {record.getMessage()}")


def wants_live(console: Console) -> bool:
    """Whether a person is watching: a capable terminal, outside CI, that can show a sparkline."""
    # Asking the file itself, because FORCE_COLOR makes rich take a pipe for a terminal.
    return (
        console.file.isatty()
        and not console.is_dumb_terminal
        and console.encoding.lower().startswith("utf")
        and os.environ.get("CI", "").lower() in {"", "0", "false"}
    )


class PlainView:
    """One line a step, without colour or cursor movements: for logs, pipes and CI."""

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
        self._before = history[-1] if history else None

    def start(self) -> None:
        self._print(f"run {one_line(self._title)}")

    def step(self, metrics: StepMetrics) -> None:
        self._print(step_line(metrics, self._num_steps, self._before))
        self._before = metrics

    def note(self, line: str) -> None:
        self._print(line)

    def sample(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._print(f"  {line}")

    def stop(self) -> None:
        pass

    def _print(self, line: str) -> None:
        encoding = self._console.encoding
        self._console.print(Text(line.encode(encoding, "replace").decode(encoding)), soft_wrap=True)


def step_line(metrics: StepMetrics, num_steps: int, before: StepMetrics | None) -> str:
    """``step 3/40  Solver 0.21 (+0.05)  212 tok/s  lag 1  wait 0.4s``: change since ``before``, largest lag; and
    where the step was evaluated ``eval Solver 0.25 [0.20, 0.31]``, which is all there is to step 0."""
    parts = [f"step {metrics.step}/{num_steps}"]
    evaluation = [f"eval {one_line(role)} {reward}" for role, reward in evaluated(metrics.values).items()]
    if metrics.step == 0:
        return "  ".join([*parts, *evaluation])
    for role, stats in metrics.rewards.items():
        earlier = before.rewards.get(role) if before else None
        change = f"{stats.mean - earlier.mean:+.2f}" if earlier else "+0.00"
        parts.append(f"{one_line(role)} {stats.mean:.2f}" + ("" if float(change) == 0 else f" ({change})"))
    parts += [
        f"{metrics.tokens_per_second:.0f} tok/s",
        f"lag {metrics.staleness_max}",
        f"wait {metrics.learner_wait_seconds:.1f}s",
    ]
    return "  ".join([*parts, *trouble(metrics), *evaluation])


def trouble(metrics: StepMetrics) -> list[str]:
    """What of a step's episodes and records was not trained on, and why, as far as there is any."""
    counts = {
        "stale": metrics.dropped_stale,
        "failed": metrics.failed,
        "unscored": metrics.values.get("credit/unscored", 0),
        "groups incomplete": metrics.values.get("credit/incomplete_groups", 0),
        "extra batches": metrics.values.get("train/extra_batches", 0),
    }
    told = [f"{count:.0f} {what}" for what, count in counts.items() if count]
    return (
        [*told, "not applied: the gradient is not finite"] if metrics.values.get("train/nonfinite") else told
    )


def summary(history: Sequence[StepMetrics]) -> str:
    """A table of each role's mean reward over the first and the last five steps, and the difference; below it the
    first and the last evaluation, if there are two."""
    changes = reward_changes(history)
    if not changes:
        return "no training step was taken"
    width = max(len("mean reward"), *(len(one_line(change.role)) for change in changes))
    steps = max(change.steps for change in changes)
    many = f"{steps} steps" if steps > 1 else "step"
    rows = [f"{'mean reward':<{width}}  {f'first {many}':>13}  {f'last {many}':>13}  difference"]
    for change in changes:
        difference = round(change.difference, 3) + 0.0  # adding 0.0 turns -0.0 into 0.0
        name = one_line(change.role)
        rows.append(f"{name:<{width}}  {change.first:>13.3f}  {change.last:>13.3f}  {difference:>+10.3f}")
    return "\n".join([*rows, *_evaluation_rows(history)])


def _evaluation_rows(history: Sequence[StepMetrics]) -> list[str]:
    steps = [(metrics.step, evaluation) for metrics in history if (evaluation := evaluated(metrics.values))]
    if len(steps) < 2:
        return []
    (before, first), (after, last) = steps[0], steps[-1]
    width = max(len("evaluation"), *(len(one_line(role)) for role in last))
    rows = [f"{'evaluation':<{width}}  {f'step {before}':>20}  {f'step {after}':>20}"]
    for role, reward in last.items():
        earlier = f"{first[role]}" if role in first else "-"
        rows.append(f"{one_line(role):<{width}}  {earlier:>20}  {f'{reward}':>20}")
    return rows
