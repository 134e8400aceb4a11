"""Threads that share one piece of work at a time."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
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
        self._inboxes: list[SimpleQueue[tuple[Task, _Call] | None]] = [
            SimpleQueue() for _ in range(count - 1)
        ]
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
        bounds = [kept + (1 - kept) * number / len(self._inboxes) for number in range(self.count)]
        shares = [Share(0.0, kept), *(Share(*pair) for pair in pairwise(bounds))]
        started = time.perf_counter()
        ended, last = self._call([partial(work, share) for share in shares], lambda: None)
        late = (last - ended + MARGIN) / (ended - started)
        least, most = WITHIN
        if kind is not None:
            self._kept[kind] = min(most, max(least, kept + GAIN * max(-1.0, min(late, 1.0))))

    def together(self, work: Callable[[int], object], give_up: Task) -> None:
        """Call ``work`` in every thread, with the thread's number; raises what one raises, once it has called
        ``give_up``, upon which no other may wait for that one. Not after ``close``."""
        self._call([partial(work, number) for number in range(self.count)], give_up)

    def _call(self, tasks: Sequence[Task], give_up: Task) -> tuple[float, float]:
        """Call each task in its thread; when the first and the last of the others ended."""
        call, asked = _Call(give_up), 0
        try:
            for inbox, task in zip(self._inboxes, tasks[1:], strict=True):
                inbox.put((task, call))
                asked += 1
            with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
                tasks[0]()
        except BaseException:
            give_up()
            raise
        finally:
            ended = time.perf_counter()
            outcomes = [call.outcomes.get() for _ in range(asked)]
        for _, error in outcomes:
            if error is not None:
                raise error
        return ended, max((when for when, _ in outcomes), default=ended)

    def close(self) -> None:
        """End the threads."""
        for inbox in self._inboxes:
            inbox.put(None)

    def _obey(self, inbox: SimpleQueue[tuple[Task, _Call] | None]) -> None:
        with np.errstate(all="ignore"):
            while (order := inbox.get()) is not None:
                task, call = order
                with call:
                    task()
                del order, task, call  # and the memory that they hold


class _Call:
    """Takes down when and how each piece of work has ended, for who handed it over and raises what it raised. Of one
    call of :class:`Cores` only: one that is interrupted leaves nothing for the next."""

    def __init__(self, give_up: Task) -> None:
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._give_up = give_up

    def __enter__(self) -> None:
        """Nothing to tell yet."""

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        if error is not None:
            self._give_up()
        self.outcomes.put((time.perf_counter(), error))
        return True
