"""What takes far longer than it took before is overdue."""

from __future__ import annotations

from selfplay_ray.scheduling.patience import SLOW, Stopwatch, patience


def test_it_is_a_multiple_of_the_median_and_some_seconds_at_least_once_enough_is_known():
    assert patience([1.0, 2.0], 3, 5.0) is None
    assert patience([1.0, 2.0, 9.0], 3, 5.0) == SLOW * 2
    assert patience([0.1, 0.2, 0.3], 3, 5.0) == 5.0


def test_a_stopwatch_knows_while_it_runs():
    now = 0.0
    watch = Stopwatch(2, 5.0, lambda: now)
    for seconds in (1.0, 3.0):
        with watch.running():
            now += seconds
            assert not watch.overdue
    now += 1_000
    assert not watch.overdue  # nothing is under way
    with watch.running():
        now += 20.0
        assert not watch.overdue  # ten times the median, 2
        now += 0.1
        assert watch.overdue
    assert not watch.overdue
