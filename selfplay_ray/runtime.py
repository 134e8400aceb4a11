"""How an arena gets its two verbs done: complete this prompt, run these episodes. Here: in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfplay_ray.execution import execute
from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, ModelCall

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena


class ModelClient(Protocol):
    """Whatever answers model calls: an engine, an HTTP endpoint, a judge, a script in a test."""

    async def complete(self, call: ModelCall) -> Completion:
        """Answer one call. Raises InferenceError."""
        ...

    def get_policy_version(self) -> int:
        """The version of the weights that would answer now."""
        ...


@dataclass(frozen=True, slots=True)
class ParentCall:
    """Who asks for children: the episode's request id, and the number of its ``generate_rollouts`` so far."""

    request_id: str
    number: int


class Runtime(Protocol):
    """What an :class:`~selfplay_ray.arena.Arena` delegates to."""

    async def complete(self, call: ModelCall) -> Completion:
        """Answer one model call; ``call.role_id`` None is a judge's."""
        ...

    async def run(
        self, requests: Sequence[EpisodeRequest], parent: ParentCall | None
    ) -> list[GenerateResult]:
        """Run ``requests`` (which have ids) and return their results in the same order; roots have no parent."""
        ...

    def get_policy_version(self) -> int:
        """The version of the live policy."""
        ...


class LocalRuntime:
    """Everything in this process: model calls by ``client`` (a judge's by ``judge``), episodes as coroutines.

    Without a ``judge`` of its own the client judges, with the policy as it is.
    """

    def __init__(self, arena: Arena, client: ModelClient, judge: ModelClient | None = None) -> None:
        self._arena = arena
        self.client = client
        self._judge = judge or client

    def serving(self, arena: Arena) -> LocalRuntime:
        """The same for another arena."""
        return LocalRuntime(arena, self.client, self._judge)

    async def complete(self, call: ModelCall) -> Completion:
        return await (self._judge if call.role_id is None else self.client).complete(call)

    async def run(
        self, requests: Sequence[EpisodeRequest], parent: ParentCall | None
    ) -> list[GenerateResult]:
        return await asyncio.gather(*(self._run_one(request) for request in requests))

    def get_policy_version(self) -> int:
        return self.client.get_policy_version()

    async def _run_one(self, request: EpisodeRequest) -> GenerateResult:
        request = self._arena.resolve_artifact(request)
        rollout, children = await execute(self._arena, request)
        return GenerateResult(rollout, children, request.is_trainable, request.group)
