"""Where an environment of verifiers' is kept ready: one for each event loop, for as long as that runs."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, Self

from selfplay_ray.errors import EpisodeError
from selfplay_ray.integrations.textarena_game import Chance
from selfplay_ray.integrations.verifiers_environment import Environment
from selfplay_ray.integrations.verifiers_switchboard import ChatRequest, Switchboard
from selfplay_ray.types import Completion


class Stage:
    """An environment with what it shares among its episodes (interception, tool servers), and our switchboard.

    It is opened and closed in a task of its own, which the end of its event loop cancels.
    """

    def __init__(self, environment: Environment) -> None:
        self.env: Any = None
        self.switchboard = Switchboard()
        self._environment = environment
        self._ready = asyncio.get_running_loop().create_future()
        # In a context of its own: it outlives the episode that opens it.
        self._task = asyncio.get_running_loop().create_task(self._live(), context=contextvars.Context())

    async def ready(self) -> Self:
        """Raises what opening it raised."""
        await asyncio.wait({self._task, self._ready}, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            self._task.result()  # which raises
            raise EpisodeError(f"verifiers' environment {self._environment.name!r} is closed")
        return self

    @property
    def open(self) -> bool:
        """Whether it is, or is being opened."""
        return not self._task.done()

    async def close(self) -> None:
        """End it before its event loop does."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _live(self) -> None:
        self.env = self._environment.make()
        async with self.switchboard, self.env.serving():
            self._ready.set_result(None)
            await asyncio.get_running_loop().create_future()


_stages: dict[tuple[asyncio.AbstractEventLoop, Environment], Stage] = {}


async def stage_of(environment: Environment) -> Stage:
    """The stage of ``environment`` in this event loop, opened at first use.

    Raises:
        ConfigError: there is no such environment.
    """
    for key in [key for key, stage in _stages.items() if not stage.open or key[0].is_closed()]:
        del _stages[key]
    key = (asyncio.get_running_loop(), environment)
    stage = _stages.get(key) or _stages.setdefault(key, Stage(environment))
    return await stage.ready()


async def close_stages() -> None:
    """Close what this event loop has opened; the next episode opens it again."""
    mine = [key for key in _stages if key[0] is asyncio.get_running_loop()]
    for stage in [_stages.pop(key) for key in mine]:
        await stage.close()


Speak = Callable[[Any, ChatRequest], Coroutine[Any, Any, Completion]]


class Sitting:
    """One episode on a stage. Its model calls come in over HTTP, and are made by ``speak``, given the ``vf.Trace``
    that asks, as tasks of the episode that opened the context; none outlives it."""

    def __init__(self, stage: Stage, speak: Speak) -> None:
        self._stage = stage
        self._speak = speak
        self._context = copy_context()
        self._sessions: list[str] = []
        self._calls: set[asyncio.Task[Completion]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def play(self, task: Any, model: Any, chance: Chance) -> Any:
        """The ``vf.Episode`` of ``task``; raises what a model call raised, which ends it."""
        episode = self._stage.env.run_episode(task, model, on_trace=self._connect)
        playing = asyncio.create_task(_with_chance(episode, chance))
        try:
            await asyncio.wait({playing, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            return playing.result()
        finally:
            playing.cancel()
            await asyncio.wait({playing})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for session in self._sessions:
            self._stage.switchboard.disconnect(session)
        calls = set(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        if not self._failed.cancel() and not self._failed.cancelled():
            self._failed.exception()  # what failed after the first failure is nobody's concern

    def _connect(self, trace: Any) -> None:
        self._sessions.append(trace.id)
        self._stage.switchboard.connect(trace.id, partial(self._answer, trace))

    async def _answer(self, trace: Any, asked: ChatRequest) -> Completion:
        call = asyncio.create_task(self._speak(trace, asked), context=self._context.copy())
        self._calls.add(call)
        await asyncio.wait({call})
        self._calls.discard(call)
        error = None if call.cancelled() else call.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)
        if call.cancelled() or error is not None:
            raise EpisodeError("the rollout is over") from error
        return call.result()


class _Steps(Generator[Any, Any, Any]):
    """A coroutine that finds ``chance`` in place whenever it goes on, and nobody else does."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], chance: Chance) -> None:
        self._coroutine = coroutine
        self._chance = chance

    def send(self, value: Any) -> Any:
        with self._chance.in_place():
            return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        with self._chance.in_place():
            return self._coroutine.throw(*error)

    def __await__(self) -> Self:
        return self


async def _with_chance(coroutine: Coroutine[Any, Any, Any], chance: Chance) -> Any:
    return await _Steps(coroutine, chance)
