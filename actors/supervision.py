"""Noticing that an actor was lost or hangs, and connecting the process that Ray puts in its place."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import ActorDiedError, RayActorError

from selfplay_ray.actors.faults import root_cause
from selfplay_ray.actors.protocols import Handle
from selfplay_ray.errors import ClusterError, SelfPlayError
from selfplay_ray.runlog.plain_text import one_line

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
CONNECT_SECONDS = 600.0
"""How long an actor may take to connect, which is when it loads a model."""
PULSE = "pulse"
"""Ray's concurrency group of methods that are answered while an actor without ``async`` methods is at work."""
ENDING_SECONDS = 0.1
"""How soon it is noticed that nobody is to be looked after any more."""


@dataclass(slots=True)
class Ward:
    """An actor that is looked after: ``connect`` is for a process that has just taken its place; ``patience`` is how
    many seconds it may take to say that it is there. ``replaced`` counts the processes that were lost; ``heard`` is
    when it was last heard of in another way, so that it needn't be asked."""

    name: str
    handle: Handle
    patience: float
    connect: Callable[[], Awaitable[object]]
    replaced: int = 0
    heard: float = -math.inf

    def hear(self) -> None:
        self.heard = time.monotonic()


async def look_after(
    ward: Ward, away: Callable[[], object] = lambda: None, there: Callable[[], object] = lambda: None
) -> ActorDiedError:
    """Ask ``ward`` whether it is connected, now and then, and connect it when it isn't; one that doesn't answer, or
    answers by a TimeoutError, is killed, so that Ray replaces it. ``away`` and ``there`` are called each time it was
    found to be. Returns why it won't come back.

    Of a class that doesn't say whether it is connected, Ray says whether it is there; it is neither connected again
    nor killed, for it may well be at work.
    """
    knows = hasattr(ward.handle, "connected")
    ask = ward.handle.connected if knows else ward.handle.__ray_ready__
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        if time.monotonic() - ward.heard < HEARTBEAT_SECONDS:
            there()
            continue
        try:
            async with asyncio.timeout(ward.patience if knows else None):
                connected = await ask.remote()
            if knows and not connected:
                ward.replaced += 1
                away()
                logger.warning("%s was lost; another process takes its place", ward.name)
                async with asyncio.timeout(CONNECT_SECONDS):
                    await ward.connect()
            there()
        except TimeoutError:
            logger.warning("%s hangs; it is killed", ward.name)
            ray.kill(ward.handle, no_restart=False)
            away()
        except ActorDiedError as died:
            return died
        except RayActorError:  # being replaced, or out of reach: it is asked again
            away()


def lost_for_good(name: str, died: ActorDiedError) -> ClusterError:
    """What to say of a run that can't do without ``name``."""
    return ClusterError(f"{name} died and isn't restarted: {one_line(str(died))}")


class Supervisor:
    """Looks after actors in a thread of its own. ``failure`` says why the run can't go on without one of them.

    Args:
        kinds: those of each kind by what it is called; the run goes on as long as there is one of each.
    """

    def __init__(self, kinds: Mapping[str, Sequence[Ward]]) -> None:
        self.failure: SelfPlayError | None = None
        self._kinds = kinds
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._look_after_all()), name="supervisor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Let go of all, before they are ended."""
        self._ending.set()
        self._thread.join()

    async def _look_after_all(self) -> None:
        looking = [asyncio.create_task(self._look_after(*kind)) for kind in self._kinds.items() if kind[1]]
        while not self._ending.is_set():
            await asyncio.sleep(ENDING_SECONDS)
        for task in looking:
            task.cancel()

    async def _look_after(self, kind: str, wards: Sequence[Ward]) -> None:
        """Until the last of them is lost for good."""
        try:
            for lost in asyncio.as_completed([look_after(ward) for ward in wards]):
                died = await lost
        except Exception as error:  # noqa: BLE001 -- what connecting raised, which the run then fails of
            cause = root_cause(error)
            failure = (
                cause if isinstance(cause, SelfPlayError) else ClusterError(f"the run stopped: {cause!r}")
            )
        else:
            failure = lost_for_good(kind, died)
        self.failure = self.failure or failure
