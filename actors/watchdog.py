"""Says what everybody is waiting for when a step takes long, and ends a run in which none happens any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from selfplay_ray.actors.protocols import ArenaStatus
from selfplay_ray.errors import ClusterError

logger = logging.getLogger(__name__)

FIRST_WORD = 60.0
"""Seconds without a step after which it speaks for the first time; then whenever twice as many have passed."""


class Watchdog:
    """Watches over one step, which may take ``limit`` seconds."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._began, self._next_word = clock(), FIRST_WORD

    def look_at(self, status: ArenaStatus) -> None:
        """Warn if it is time to.

        Raises:
            ClusterError, …: what the arena failed of; or there was no step for too long, and what was waited for.
        """
        if status.failure is not None:
            raise status.failure
        seconds = self._clock() - self._began
        if seconds > self._limit:
            raise ClusterError(f"no training step for {self._limit:g} seconds, {_state(status)}")
        if seconds > self._next_word:
            logger.warning("no training step for %.0f seconds, %s", self._next_word, _state(status))
            self._next_word *= 2


def _state(status: ArenaStatus) -> str:
    waiting = "; ".join(status.unfinished) or "the learner is at work, or nothing is in flight"
    counts = [
        f"{status.replayed} begun again after a loss" if status.replayed else "",
        f"{status.overdue} tried elsewhere as well" if status.overdue else "",
    ]
    more = f" ({', '.join(filter(None, counts))})" if any(counts) else ""
    return f"at version {status.version} with {status.in_flight} episodes in flight{more}: {waiting}"
