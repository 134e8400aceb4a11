"""An interrupt that Python drops is found at the next look."""

from __future__ import annotations

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


def test_an_interrupt_elsewhere_is_raised_at_once() -> None:
    with Interrupts().handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
