"""Starting and stopping the actors of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
from pydantic import SecretStr
from ray.exceptions import RayError

from selfplay_ray.actors.faults import get
from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Handle, Peers
from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ClusterError
from selfplay_ray.runlog.folder import RunLog

CLOSE_SECONDS = 5.0
"""How long endpoints may take to let go of what the run has loaded there."""


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

    def step(self) -> Handle:
        """Ask the learner for its next step: a reference to :class:`StepMetrics`, or to None at the end."""
        return self.peers.learner.step.remote()

    def status(self) -> ArenaStatus:
        """What the arena is doing."""
        status: ArenaStatus = get(self.peers.arena.status.remote())
        return status

    def finish(self) -> None:
        """Tell the arena that the last step was taken."""
        get(self.peers.arena.finish.remote())

    def stop(self) -> None:
        """End every actor; those at endpoints last, when nobody asks them any more and what they loaded can go."""
        try:
            for actor in self._actors.values():
                ray.kill(actor)
            self._actors.clear()
            closing = [actor.close.remote() for actor in self._endpoints.values()]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        finally:
            for actor in self._endpoints.values():
                ray.kill(actor)
            self._endpoints.clear()
            shutil.rmtree(RunLog(self._folder).published_dir, ignore_errors=True)

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
        get(self.peers.arena.start.remote())

    def _start_one(self, place: str, spec: ActorSpec, index: int) -> Handle:
        name = f"{place}-{index}"
        at_endpoint = place == "endpoint"
        key = os.environ.get(self._config.endpoint_api_key_env, "") if at_endpoint else ""
        context = ActorContext(
            name, self._config, self._arena, self._folder, index, self._run_id, SecretStr(key)
        )
        actor: Handle = ray.remote(spec.cls).options(**spec.options()).remote(context)
        (self._endpoints if at_endpoint else self._actors)[name] = actor
        return actor
