"""A rollout worker: plays episodes as coroutines on one event loop."""

from __future__ import annotations

import asyncio

from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.actors.routing import EngineRouter, JudgeRouter
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.messages import Orders, Report
from selfplay_ray.models import resolve_model
from selfplay_ray.runtime import ModelClient
from selfplay_ray.worker import EpisodeWorker


class RolloutWorker:
    """Ray's side of an :class:`~selfplay_ray.worker.EpisodeWorker`."""

    def __init__(self, context: ActorContext) -> None:
        self._context = context
        self._worker: EpisodeWorker | None = None

    async def connect(self, peers: Peers) -> None:
        client = await asyncio.to_thread(self.make_client, peers)
        self._context.arena.configure(self._context.config)  # this process' copy
        judge = JudgeRouter(peers.judges) if peers.judges else client

        def send(report: Report) -> None:
            try:
                peers.arena.report.remote(self._context.name, report)
            except Exception as error:  # what an episode left there may raise anything when it is pickled
                raise TypeError(str(error.__cause__ or error)) from error  # without Ray's long account

        self._worker = EpisodeWorker(self._context.arena, client, judge, send)

    def make_client(self, peers: Peers) -> ModelClient:
        """What answers the roles. Takes a second: it reads the tokenizer."""
        config = self._context.config
        chat = ChatTokenizer(resolve_model(config.model_path))
        return EngineClient(
            chat, EngineRouter(peers.engines).generate, self.get_policy_version, config.max_tokens
        )

    async def connected(self) -> bool:
        return self._worker is not None

    async def accept(self, orders: Orders) -> None:
        if self._worker is not None:  # else it was restarted, and the arena is about to notice
            self._worker.accept(orders)

    def get_policy_version(self) -> int:
        return self._worker.get_policy_version() if self._worker else 0
