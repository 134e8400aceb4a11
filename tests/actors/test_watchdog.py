"""What is said, and when, of a step that doesn't come."""

from __future__ import annotations

import logging

import pytest

from selfplay_ray.actors.protocols import ArenaStatus
from selfplay_ray.actors.watchdog import Watchdog
from selfplay_ray.errors import ClusterError, ErrorBudgetExceeded

STATUS = ArenaStatus(
    version=3, finished=7, failed=0, in_flight=2, done=False, unfinished=["r1 (solve): on w0"], replayed=4
)


def test_it_speaks_less_and_less_often_and_then_ends_the_run(caplog: pytest.LogCaptureFixture):
    now = 0.0
    watchdog = Watchdog(1800, lambda: now)
    said = []
    with caplog.at_level(logging.WARNING, logger="selfplay_ray"):
        while now <= 1800:
            watchdog.look_at(STATUS)
            said += [now] * len(caplog.records)
            caplog.clear()
            now += 1
    assert said == [61, 121, 241, 481, 961]
    with pytest.raises(ClusterError, match="no training step for 1800 seconds, at version 3"):
        watchdog.look_at(STATUS)


def test_it_says_what_is_waited_for(caplog: pytest.LogCaptureFixture):
    now = 0.0
    watchdog = Watchdog(1800, lambda: now)
    now = 61
    watchdog.look_at(STATUS)
    assert caplog.messages == [
        "no training step for 60 seconds, at version 3 with 2 episodes in flight (4 begun again after a loss): "
        "r1 (solve): on w0"
    ]


def test_what_the_arena_failed_of_is_raised_at_once():
    failed = ArenaStatus(3, 7, 5, 0, False, failure=ErrorBudgetExceeded("too many"))
    with pytest.raises(ErrorBudgetExceeded, match="too many"):
        Watchdog(1800).look_at(failed)
