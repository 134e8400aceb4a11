"""The desk where questions wait for a person."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["waiting", "answered", "abstained"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a question; only one that was answered has an answer."""

    state: State
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked; ``number`` is how it is spoken of. ``seconds_left`` None is all the time."""

    number: int
    text: str
    seconds_left: float | None


@dataclass(slots=True)
class _Entry:
    number: int
    text: str
    deadline: float | None = None
    outcome: Outcome = Outcome("waiting")


class Desk:
    """Questions to one person, from any thread; each is answered once, or closed when its ``timeout`` seconds are over.

    Its time begins when it is posted: a person sees all of them at once. With ``one_by_one`` it begins when
    :meth:`take` hands it out, in the order in which they came.
    """

    def __init__(
        self, timeout: float, *, one_by_one: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout = timeout
        self._one_by_one = one_by_one
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._waiting: dict[int, _Entry] = {}  # by number, oldest first
        self._closed = False

    def post(self, key: str, text: str) -> Outcome:
        """Ask ``text``, once: the same ``key`` again, from a worker that took over, is the same question."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(len(self._entries) + 1, text)
                self._waiting[entry.number] = entry
                if not self._one_by_one:
                    entry.deadline = self._clock() + self.timeout
            self._expire()
            return entry.outcome

    def outcome(self, key: str) -> Outcome | None:
        """What became of the question; None if there was never such a one."""
        with self._lock:
            self._expire()
            entry = self._entries.get(key)
            return entry.outcome if entry is not None else None

    def waiting(self) -> list[Question]:
        """What may be answered, oldest first."""
        with self._lock:
            self._expire()
            return [self._shown(entry) for entry in self._waiting.values()]

    def take(self) -> Question | None:
        """The oldest question that waits; its time begins, if it hasn't."""
        with self._lock:
            self._expire()
            entry = next(iter(self._waiting.values()), None)
            if entry is None:
                return None
            if entry.deadline is None:
                entry.deadline = self._clock() + self.timeout
            return self._shown(entry)

    def answer(self, number: int, answer: str) -> bool:
        """Answer a question; False if it doesn't wait any more, or never did."""
        with self._lock:
            self._expire()
            entry = self._waiting.pop(number, None)
            if entry is None:
                return False
            entry.outcome = Outcome("answered", answer)
            return True

    def close(self) -> None:
        """There is nobody to answer any more: what waits, and what is still to come, is an abstention."""
        with self._lock:
            self._closed = True
            self._expire()

    def _shown(self, entry: _Entry) -> Question:
        left = None if entry.deadline is None else max(0.0, entry.deadline - self._clock())
        return Question(entry.number, entry.text, left)

    def _expire(self) -> None:
        now = self._clock()
        for number, entry in list(self._waiting.items()):
            if self._closed or (entry.deadline is not None and now >= entry.deadline):
                entry.outcome = Outcome("abstained")
                del self._waiting[number]
