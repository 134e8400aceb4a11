"""Starting and stopping the actors of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
from pydantic import SecretStr
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Handle, Peers
from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
from selfplay_ray.actors.supervision import Supervisor, Ward
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ClusterError
from selfplay_ray.runlog.folder import RunLog

CLOSE_SECONDS = 5.0
"""How long endpoints may take to let go of what the run has loaded there."""
DRAIN_SECONDS = 2.0
"""How long the arena may take to put away what is credited: `ray job stop` leaves a run three seconds."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """The Ray cluster to run on: the one this process is connected to, the one RAY_ADDRESS names (so inside
    ``ray job submit``), or else one of this process's own on this machine, which ends with it.

    Ray listens on all interfaces even for one machine, and so has a local cluster ask for a token, unless
    RAY_AUTH_MODE says otherwise. Ours is a fresh one.

    Raises:
        ClusterError: Ray could not be started or reached.
    """
    if ray.is_initialized():
        yield
        return
    own = "RAY_ADDRESS" not in os.environ
    if own and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault(
            "RAY_AUTH_TOKEN", secrets.token_hex(32)
        )  # else Ray leaves one in the home folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        # "local", or Ray would join a cluster that happens to run on this machine.
        ray.init(
            "local" if own else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if own else None,
        )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(f"Ray could not be {'started' if own else 'reached'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


class Cluster:
    """The actors of one run, standing while the context is open.

    Raises:
        ClusterError, ModelError, …: an actor could not be started; says which, and why.
    """

    def __init__(
        self, arena: Arena, config: RunConfig, run_folder: Path, spec: ClusterSpec | None = None
    ) -> None:
        self._arena = arena
        self._config = config
        self._folder = run_folder.resolve()
        self._spec = spec or ClusterSpec.from_config(config)
        self._run_id = secrets.token_hex(4)
        self._actors: dict[str, Handle] = {}
        self._endpoints: dict[str, Handle] = {}
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def step(self, taken: int) -> Handle:
        """Ask the learner for the step after ``taken``: a reference to :class:`StepMetrics`, or to None at the end."""
        return self.peers.learner.step.remote(taken)

    def status(self) -> ArenaStatus:
        """What the arena is doing; the failure may also be that somebody was lost for good. Its warnings are logged.

        Raises:
            ClusterError: the arena itself was lost for good.
        """
        status: ArenaStatus = get(self.peers.arena.status.remote())
        for warning in status.warnings:
            logger.warning("%s", warning)
        lost = self._supervisor.failure if self._supervisor else None
        return replace(status, failure=status.failure or lost)

    @property
    def learners_lost(self) -> int:
        """How often the learner's process was lost."""
        return self._learner.replaced

    def finish(self) -> None:
        """Tell the arena that the last step was taken."""
        get(self.peers.arena.finish.remote())

    def stop(self) -> None:
        """End every actor, once what was credited is in the journal; those at endpoints last, when nobody asks them any
        more and what they loaded can go."""
        with (
            contextlib.ExitStack() as stack
        ):  # another Ctrl-C skips what it comes in, and nothing that is to follow
            stack.callback(shutil.rmtree, RunLog(self._folder).published_dir, ignore_errors=True)
            stack.callback(_kill_all, self._endpoints)
            stack.callback(_wait_for, CLOSE_SECONDS, [actor.close for actor in self._endpoints.values()])
            stack.callback(_kill_all, self._actors)
            if self._supervisor:
                stack.callback(_wait_for, DRAIN_SECONDS, [self.peers.arena.drain])
                self._supervisor.stop()

    def _start(self) -> None:
        places = {
            place: [self._start_one(place, spec, index) for index in range(spec.count)]
            for place, spec in ((name, getattr(self._spec, name)) for name in self._spec.__slots__)
        }
        self.peers = Peers(
            arena=places["arena"][0],
            queue=places["queue"][0],
            learner=places["learner"][0],
            broadcaster=places["broadcaster"][0],
            workers={f"worker-{index}": handle for index, handle in enumerate(places["worker"])},
            engines=places["engine"] + places["endpoint"],
            judges=places["judge"],
        )
        learner = self._actors["learner-0"]
        others = [actor for actor in self._actors.values() if actor is not learner]
        get([actor.connect.remote(self.peers) for actor in (*others, *self._endpoints.values())])
        get(learner.connect.remote(self.peers))  # last, because it publishes its first weights
        get(self._start_arena())
        wards = self._wards()
        (self._learner,) = wards["the learner"]
        self._supervisor = Supervisor(wards)

    def _start_arena(self) -> Handle:
        # Never made again by Ray: a process that has replaced it must be connected first.
        return self.peers.arena.start.options(max_task_retries=0).remote()

    def _wards(self) -> dict[str, list[Ward]]:
        """Whom the run can't do without, and how they come back. The arena itself looks after the workers."""
        peers, everybody = self.peers, {**self._actors, **self._endpoints}

        async def connect(actor: Handle) -> None:
            await actor.connect.remote(peers)

        async def connect_arena(arena: Handle) -> None:
            await connect(arena)
            await self._start_arena()

        async def connect_engine(engine: Handle) -> None:
            await connect(engine)
            await peers.broadcaster.catch_up.remote(engine)

        def wards(*places: str, connect: Callable[[Handle], Awaitable[None]] = connect) -> list[Ward]:
            return [
                Ward(name, actor, self._config.hang_timeout, partial(connect, actor))
                for name, actor in everybody.items()
                if name.rpartition("-")[0] in places
            ]

        return {
            "the arena": wards("arena", connect=connect_arena),
            "the replay queue": wards("queue"),
            "the broadcaster": wards("broadcaster"),
            "the learner": wards("learner"),
            "the last inference engine": wards("engine", "endpoint", connect=connect_engine),
            "the last judge": wards("judge"),
        }

    def _start_one(self, place: str, spec: ActorSpec, index: int) -> Handle:
        name = f"{place}-{index}"
        at_endpoint = place == "endpoint"
        key = os.environ.get(self._config.endpoint_api_key_env, "") if at_endpoint else ""
        context = ActorContext(
            name, self._config, self._arena, self._folder, index, self._run_id, SecretStr(key)
        )
        options = spec.options()
        if spec.beside_driver:
            here = ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
        actor: Handle = ray.remote(**options)(spec.cls).remote(context)
        (self._endpoints if at_endpoint else self._actors)[name] = actor
        return actor


def _wait_for(seconds: float, methods: Sequence[Handle]) -> None:
    """Until all of these methods of actors have returned, and so many seconds at most."""
    if asked := [method.remote() for method in methods]:
        ray.wait(asked, num_returns=len(asked), timeout=seconds)


def _kill_all(actors: dict[str, Handle]) -> None:
    for actor in actors.values():
        ray.kill(actor)
    actors.clear()
