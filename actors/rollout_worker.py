"""A rollout worker: plays episodes as coroutines on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial

from ray.exceptions import ActorDiedError, RayActorError

from selfplay_ray.actors.faults import root_cause
from selfplay_ray.actors.protocols import ActorContext, Handle, Peers
from selfplay_ray.actors.routing import EngineRouter, JudgeRouter
from selfplay_ray.inference.balance import RetrySettings
from selfplay_ray.models import resolve_model
from selfplay_ray.runtime import ModelClient
from selfplay_ray.scheduling.messages import Orders, Report
from selfplay_ray.scheduling.worker import EpisodeWorker

RETRY_SECONDS = 1.0


class RolloutWorker:
    """Ray's side of an :class:`~selfplay_ray.worker.EpisodeWorker`."""

    def __init__(self, context: ActorContext) -> None:
        self._context = context
        self._retry = RetrySettings(deadline=context.config.endpoint_timeout)
        self._worker: EpisodeWorker | None = None

    async def connect(self, peers: Peers) -> None:
        client = await asyncio.to_thread(self.make_client, peers)
        self._context.arena.configure(self._context.config)  # this process' copy
        judge = JudgeRouter(peers.judges, self._retry) if peers.judges else client
        self._worker = EpisodeWorker(self._context.arena, client, judge, partial(self._report, peers.arena))

    async def _report(self, arena: Handle, report: Report) -> Orders | None:
        """What the arena answers; asked again where that was lost, because orders may be lost with it."""
        while True:
            try:
                answer: Awaitable[Orders | None] = arena.report.remote(self._context.name, report)
            except Exception as error:  # what an episode left there may raise anything when it is pickled
                raise TypeError(_told(error.__cause__ or error)) from error  # without Ray's long account
            try:
                return await answer
            except ActorDiedError:  # for good, and the run is over
                return None
            except RayActorError:
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 -- what can be pickled can't always be unpickled, on either side
                cause = root_cause(error)
                arena.fail.remote(
                    f"a report of {self._context.name} could not be read by the arena, or not be answered: "
                    f"{type(cause).__name__}: {_told(cause)}"
                )
                return None

    def make_client(self, peers: Peers) -> ModelClient:
        """What answers the roles. Takes a second: it reads the tokenizer."""
        from selfplay_ray.inference.chat import ChatTokenizer
        from selfplay_ray.inference.client import EngineClient

        config = self._context.config
        chat = ChatTokenizer(resolve_model(config.model_path))
        router = EngineRouter(peers.engines, self._retry)
        return EngineClient(chat, router.generate, self.get_policy_version, config.max_tokens)

    async def connected(self) -> bool:
        return self._worker is not None

    async def accept(self, orders: Orders) -> bool:
        if self._worker is None:  # it was replaced, and is about to be connected
            return False
        self._worker.accept(orders)
        return True

    def get_policy_version(self) -> int:
        return self._worker.get_policy_version() if self._worker else 0


def _told(error: BaseException) -> str:
    """What it says, or what it is where asking it raises another error."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001
        return type(error).__name__
