"""Ctrl-C, and SIGTERM, which is how `ray job stop` asks: both end a run, actors first, and neither can get lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
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
        """Raise KeyboardInterrupt at both signals while the context is open."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._asked = True
            raise KeyboardInterrupt

        with _handling(interrupt):
            yield

    @contextmanager
    def deferred(self, tell: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Take note of the first signal while the context is open, ``tell``, and raise KeyboardInterrupt when it is
        left; at a second one raise it at once.

        For what must not be interrupted: Ray, as it starts, leaves processes behind then, or crashes. The handlers that
        Ray puts there meanwhile are gone afterwards.
        """

        def note(number: int, frame: FrameType | None) -> None:
            self.check()
            self._asked = True
            tell()

        with _handling(note):
            yield
        self.check()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """``handler`` is called at both signals while the context is open."""
    try:
        before = [signal.signal(number, handler) for number in SIGNALS]
    except ValueError:  # not the main thread (a notebook's executor, say), which gets no signals
        yield
        return
    try:
        yield
    finally:
        for number, previous in zip(SIGNALS, before, strict=True):
            signal.signal(number, previous)
