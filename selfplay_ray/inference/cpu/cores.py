"""Threads that share one piece of work at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

Work = Callable[[int], object]
Done = SimpleQueue[BaseException | None]


class Cores:
    """``count`` threads, of which the calling one is the first.

    Handing work over takes some 10 µs, so a step may do it hundreds of times; threads that wait sleep, unlike those
    of OpenBLAS, which spin against whoever else runs on the machine.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._inboxes: list[SimpleQueue[Work | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: Done = SimpleQueue()
        for share, inbox in enumerate(self._inboxes, start=1):
            threading.Thread(
                target=self._obey, args=(inbox, share), name=f"core-{share}", daemon=True
            ).start()

    def run(self, work: Work) -> None:
        """Call ``work(share)`` for every share from 0 to ``count`` - 1, each in its thread; raises what one raises."""
        for inbox in self._inboxes:
            inbox.put(work)
        try:
            with np.errstate(all="ignore"):
                work(0)
        finally:
            errors = [self._done.get() for _ in self._inboxes]
        for error in errors:
            if error is not None:
                raise error

    def part(self, size: int, share: int, unit: int = 1) -> slice:
        """What of ``size`` things, kept together by ``unit``, is ``share``'s."""
        units = -(-size // unit)
        start, stop = (units * bound // self.count * unit for bound in (share, share + 1))
        return slice(min(start, size), min(stop, size))

    def close(self) -> None:
        """End the threads."""
        for inbox in self._inboxes:
            inbox.put(None)

    def _obey(self, inbox: SimpleQueue[Work | None], share: int) -> None:
        with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
            while (work := inbox.get()) is not None:
                with _Told(self._done):
                    work(share)


class _Told:
    """Tells how a piece of work has ended; an error is raised by who handed the work over."""

    def __init__(self, done: Done) -> None:
        self._done = done

    def __enter__(self) -> None:
        """Nothing to tell yet."""

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        self._done.put(error)
        return True
