"""The desk at the run's own terminal: one question after the other."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from selfplay_ray.human.desk import Desk, Question
from selfplay_ray.runlog.plain_text import plain_text

GLANCE_SECONDS = 0.1
STOP_SECONDS = 2.0


def write_to_terminal(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class TerminalClerk:
    """Reads what waits at ``desk`` to the person at a terminal, and takes down the answers, while the context is open.

    A line that was begun for one question never answers the next: what is typed but not sent when a question's time is
    over is thrown away. The end of the input closes the desk. ``file`` is the terminal's descriptor, which is read
    without a buffer, so that nothing waits in it when the process ends.
    """

    def __init__(self, desk: Desk, file: int, write: Callable[[str], None] = write_to_terminal) -> None:
        self._desk = desk
        self._file = file
        self._write = write
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="human-terminal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                question = self._desk.take()
                if question is None:
                    time.sleep(GLANCE_SECONDS)
                elif not self._put(question):
                    return
        finally:
            self._desk.close()  # else a run would wait for somebody who isn't there

    def _put(self, question: Question) -> bool:
        """Whether there will be more to come from the person."""
        seconds = question.seconds_left or 0.0
        self._forget_typed()
        # Every line of it begins with a bar: no text of a model's can pass for a prompt of ours.
        shown = "\n".join(f"| {line}" for line in plain_text(question.text).splitlines())
        self._write(f"\nQuestion {question.number}, {seconds:.0f} seconds:\n{shown}\n> ")
        line = self._line(time.monotonic() + seconds)
        if line is None:
            self._write("" if self._stopped.is_set() else "(time is up)\n")
        elif not line.endswith("\n"):
            return False
        elif not self._desk.answer(question.number, line.strip()):
            self._write("(too late)\n")
        return True

    def _line(self, deadline: float) -> str | None:
        """What is typed, with its line end, which only the end of the input lacks; None when the time is up."""
        typed = b""
        while not self._stopped.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if select.select([self._file], [], [], min(left, GLANCE_SECONDS))[0]:
                typed += os.read(self._file, 1) or b"\x04"
                if typed.endswith((b"\n", b"\x04")):
                    return typed.decode(errors="replace")
        return None

    def _forget_typed(self) -> None:
        if os.isatty(self._file):
            termios.tcflush(self._file, termios.TCIFLUSH)
