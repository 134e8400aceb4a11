"""Who is lost or hangs is replaced and connected again, and letting go of all of them ends at any moment."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import signal
import sys
import time

import pytest
import ray
from ray import cloudpickle

from selfplay_ray.actors import supervision
from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import Handle
from selfplay_ray.actors.supervision import Supervisor, Ward, look_after
from selfplay_ray.errors import ConfigError

cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # the actors' processes don't find the modules of tests


class Sleeper:
    """Does nothing but be there; connecting it again fails where it is to."""

    def __init__(self, *, reconnects: bool) -> None:
        self.known, self.hangs, self.reconnects = False, False, reconnects

    def connect(self) -> None:
        if ray.get_runtime_context().was_current_actor_reconstructed and not self.reconnects:
            raise ConfigError("there is nothing to go on with")
        self.known = True

    def connected(self) -> bool:
        if self.hangs:
            raise TimeoutError
        return self.known

    def hang(self) -> None:
        self.hangs = True

    def pid(self) -> int:
        return os.getpid()


def sleeper(*, restarts: int = 10, reconnects: bool = True) -> Ward:
    options = {"num_cpus": 0, "max_restarts": restarts}
    actor: Handle = ray.remote(**options)(Sleeper).remote(reconnects=reconnects)
    get(actor.connect.remote())
    return Ward("sleeper", actor, 3.0, actor.connect.remote)


def until_replaced(ward: Ward) -> None:
    """Until another process is there, and knows its peers."""
    while not ward.replaced:
        time.sleep(0.1)
    while not get(ward.handle.connected.remote()):
        time.sleep(0.1)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_who_is_lost_or_hangs_is_replaced(blow: signal.Signals, caplog: pytest.LogCaptureFixture):
    ward = sleeper()
    supervisor = Supervisor({"the sleeper": [ward]})
    try:
        pid = get(ward.handle.pid.remote())
        with caplog.at_level(logging.WARNING, logger="selfplay_ray"):
            os.kill(pid, blow)
            until_replaced(ward)
        assert get(ward.handle.pid.remote()) != pid
        assert supervisor.failure is None
    finally:
        supervisor.stop()
    said = ["sleeper hangs; it is killed"] if blow == signal.SIGSTOP else []
    # One that doesn't even go when it's told to takes Ray some seconds, in which it is found silent again.
    assert list(dict.fromkeys(caplog.messages)) == [
        *said,
        "sleeper was lost; another process takes its place",
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_who_says_that_it_hangs_is_replaced(caplog: pytest.LogCaptureFixture):
    ward = sleeper()
    supervisor = Supervisor({"the sleeper": [ward]})
    try:
        get(ward.handle.hang.remote())
        until_replaced(ward)
    finally:
        supervisor.stop()
    assert "sleeper hangs; it is killed" in caplog.messages


@pytest.mark.usefixtures("ray_cluster")
def test_the_last_that_is_lost_for_good_is_the_failure():
    wards = [sleeper(restarts=0), sleeper(restarts=0)]
    supervisor = Supervisor({"the last sleeper": wards, "the last of none": []})
    try:
        ray.kill(wards[0].handle)
        time.sleep(2 * supervision.HEARTBEAT_SECONDS)
        assert supervisor.failure is None
        ray.kill(wards[1].handle)
        while supervisor.failure is None:
            time.sleep(0.1)
    finally:
        supervisor.stop()
    assert str(supervisor.failure).startswith("the last sleeper died and isn't restarted: The actor died")


@pytest.mark.usefixtures("ray_cluster")
def test_who_cannot_be_connected_again_says_why():
    ward = sleeper(reconnects=False)
    supervisor = Supervisor({"the sleeper": [ward]})
    try:
        ray.kill(ward.handle, no_restart=False)
        while supervisor.failure is None:
            time.sleep(0.1)
    finally:
        supervisor.stop()
    assert isinstance(supervisor.failure, ConfigError)
    assert str(supervisor.failure) == "there is nothing to go on with"


class Ready:
    """The handle of an actor that is there."""

    @property
    def connected(self) -> Ready:
        return self

    async def remote(self) -> bool:
        return True


async def test_who_was_heard_of_is_not_asked_and_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervision, "HEARTBEAT_SECONDS", 0.01)

    class Unasked:
        @property
        def connected(self) -> Unasked:
            return self

        def remote(self) -> None:
            raise AssertionError("it need not be asked")

    ward = Ward("busy", Unasked(), 5.0, Ready().remote)
    there = asyncio.Event()
    ward.heard = math.inf
    looking = asyncio.create_task(look_after(ward, there=there.set))
    await there.wait()
    looking.cancel()


def test_letting_go_ends_at_any_moment(monkeypatch: pytest.MonkeyPatch):
    """`asyncio.wait_for`, for one, forgets that it was cancelled when it was answered at that moment."""
    monkeypatch.setattr(supervision, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(supervision, "ENDING_SECONDS", 0.001)
    chance = random.Random(0)

    async def connect() -> None:
        raise AssertionError("it is connected")

    for _ in range(30):
        supervisor = Supervisor({"": [Ward(str(number), Ready(), 5.0, connect) for number in range(30)]})
        time.sleep(chance.uniform(0, 0.02))
        supervisor.stop()
        assert supervisor.failure is None
