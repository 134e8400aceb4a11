"""An interrupt that Python drops is found at the next look."""

from __future__ import annotations

import contextlib
import os
import signal
import weakref

import pytest

from selfplay_ray.actors.interrupts import Interrupts


class Dying:
    """Something whose end has a callback."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_a_callback_is_not_lost(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    interrupts, reached = Interrupts(), []
    with interrupts.handled():
        interrupts.check()
        dying = Dying()
        watch = weakref.ref(dying, lambda _: os.kill(os.getpid(), number))
        del dying  # KeyboardInterrupt is raised in the callback, and dropped
        reached.append(watch())
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert reached == [None]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("numbers", "reached"), [([], 0), ([signal.SIGINT], 1), ([signal.SIGTERM, signal.SIGINT], 1)]
)
def test_a_deferred_interrupt_is_raised_in_the_end_and_a_second_one_at_once(
    numbers: list[signal.Signals], reached: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    came_to = []

    def interrupted() -> None:
        with Interrupts().deferred():
            for number in numbers:
                os.kill(os.getpid(), number)
                came_to.append(number)

    with pytest.raises(KeyboardInterrupt) if numbers else contextlib.nullcontext():
        interrupted()
    assert len(came_to) == reached
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_elsewhere_is_raised_at_once() -> None:
    with Interrupts().handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
