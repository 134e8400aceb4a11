"""Threads that share one piece of work at a time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np

GAIN = 0.1
"""How much of a difference between the threads' ends is made up for the next time; differences longer than the work
were somebody else's doing, and count as that long."""

WITHIN = (0.2, 0.9)
"""The least and the most of any work that the calling thread keeps for itself."""

MARGIN = 30e-6
"""Seconds that the calling thread means to end after the others: who finds them done needn't sleep."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of some work: from fraction ``start`` of it to fraction ``stop``."""

    start: float
    stop: float

    def of(self, size: int, unit: int = 1) -> slice:
        """Its part of ``size`` things, kept together by ``unit``. Those of all shares are all things."""
        units = -(-size // unit)
        return slice(min(round(self.start * units) * unit, size), min(round(self.stop * units) * unit, size))


ALL = Share(0.0, 1.0)

Work = Callable[[Share], object]
Task = Callable[[], object]
Outcome = tuple[float, BaseException | None]


def allowed() -> int:
    """The threads this process may have: as many as a BLAS is told to take, or one for each core."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdecimal() and int(os.environ[name]) > 0:
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Cores:
    """``count`` threads, of which the calling one is the first.

    Threads that wait sleep, unlike those of OpenBLAS, which spin against whoever else runs on the machine. Waking one
    takes some 50 µs; so the calling thread keeps as much work for itself as lets it end last, just, and needn't sleep.
    What that is, is learned from one run of a ``kind`` of work to the next; it also makes up for a core that others
    use. Work of the kind None is shared evenly, the same way each time.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._inboxes: list[SimpleQueue[Task | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: SimpleQueue[Outcome] = SimpleQueue()
        self._kept: dict[Hashable, float] = {}
        for number, inbox in enumerate(self._inboxes, start=1):
            threading.Thread(target=self._obey, args=(inbox,), name=f"core-{number}", daemon=True).start()

    def run(self, kind: Hashable, work: Work) -> None:
        """Call ``work`` with every share of it, each in its thread; raises what one raises. Not after ``close``."""
        if self.count == 1:
            with np.errstate(all="ignore"):
                work(ALL)
            return
        kept = self._kept.get(kind, 1 / self.count)
        started = time.perf_counter()
        for number, inbox in enumerate(self._inboxes):
            start, stop = (kept + (1 - kept) * bound / len(self._inboxes) for bound in (number, number + 1))
            inbox.put(partial(work, Share(start, stop)))
        try:
            with np.errstate(all="ignore"):
                work(Share(0.0, kept))
        finally:
            ended = time.perf_counter()
            outcomes = [self._done.get() for _ in self._inboxes]
        late = (max(when for when, _ in outcomes) - ended + MARGIN) / (ended - started)
        least, most = WITHIN
        if kind is not None:
            self._kept[kind] = min(most, max(least, kept + GAIN * max(-1.0, min(late, 1.0))))
        for _, error in outcomes:
            if error is not None:
                raise error

    def together(self, work: Callable[[int], object]) -> None:
        """Call ``work`` in every thread, with the thread's number; raises what one raises. Not after ``close``."""
        for number, inbox in enumerate(self._inboxes, start=1):
            inbox.put(partial(work, number))
        try:
            work(0)
        finally:
            outcomes = [self._done.get() for _ in self._inboxes]
        for _, error in outcomes:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        for inbox in self._inboxes:
            inbox.put(None)

    def _obey(self, inbox: SimpleQueue[Task | None]) -> None:
        with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
            while (task := inbox.get()) is not None:
                with _Told(self._done):
                    task()


class _Told:
    """Tells when and how a piece of work has ended; an error is raised by who handed the work over."""

    def __init__(self, done: SimpleQueue[Outcome]) -> None:
        self._done = done

    def __enter__(self) -> None:
        """Nothing to tell yet."""

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        self._done.put((time.perf_counter(), error))
        return True
