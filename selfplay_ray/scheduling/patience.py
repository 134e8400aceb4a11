"""How long something may take that is done again and again, by how long it took the last times."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SLOW = 10.0
"""What takes so many times as long as the median of the last times …"""
REMEMBERED = 200
"""… of which so many are known at most, is overdue."""


def patience(seconds: Sequence[float], enough: int, least: float) -> float | None:
    """How many seconds it may take where the last times it took ``seconds``: ``least`` at least, and any number (None)
    until ``enough`` are known."""
    return None if len(seconds) < enough else max(least, SLOW * statistics.median(seconds))


class Stopwatch:
    """Takes the time of one thing at a time, and tells whoever asks meanwhile, in another thread, whether it hangs."""

    def __init__(self, enough: int, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._enough, self._least, self._clock = enough, least, clock
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is what takes time."""
        self._since = began = self._clock()
        try:
            yield
        finally:
            self._since = None
        self._seconds.append(self._clock() - began)

    @property
    def overdue(self) -> bool:
        limit, since = patience(self._seconds, self._enough, self._least), self._since
        return limit is not None and since is not None and self._clock() - since > limit
