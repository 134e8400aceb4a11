"""Ctrl-C, and SIGTERM, which is how `ray job stop` asks: both end a run, actors first, and neither can get lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether somebody asked for an end.

    Python drops what is raised while it is in a callback of a fork or of the garbage collector, KeyboardInterrupt
    too; a run that starts processes must therefore look, now and then.
    """

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if an end was asked for, once more or for the first time."""
        if self._asked:
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at both signals while the context is open.

        Ray puts handlers of its own there as it starts: open another one then.
        """

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._asked = True
            raise KeyboardInterrupt

        try:
            before = [signal.signal(number, interrupt) for number in SIGNALS]
        except ValueError:  # not the main thread (a notebook's executor, say), which gets no signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
