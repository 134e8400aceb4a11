"""A rollout worker: plays the episodes it is given, all on one event loop, and reports in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field

from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import ArtifactStore
from selfplay_ray.errors import ClusterError, EpisodeError
from selfplay_ray.execution import execute
from selfplay_ray.runtime import ModelClient, ParentCall
from selfplay_ray.scheduling.exchange import WorkerSide
from selfplay_ray.scheduling.messages import (
    Answer,
    Finished,
    Orders,
    Report,
    Spawn,
    description,
    fingerprint,
)
from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, ModelCall, Rollout

ChildResults = asyncio.Future[list[GenerateResult]]
Send = Callable[[Report], Awaitable[Orders | None]]


@dataclass(slots=True)
class _Playing:
    """An attempt at an episode: the calls for children that it waits for, what the model has said to earlier attempts,
    and what it has said to this one that the arena doesn't know of."""

    attempt: int
    known: dict[str, Completion]
    waiting: dict[int, ChildResults] = field(default_factory=dict)
    untold: list[Answer] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


_current: ContextVar[_Playing] = ContextVar("playing")
"""What the running code is part of, also in tasks that the episode started."""


class StoresElsewhere(dict[str, ArtifactStore]):
    """In place of a worker's copies of the arena's stores, which nobody would see change."""

    def __missing__(self, name: str) -> ArtifactStore:
        raise EpisodeError(
            f"store {name!r} stays with the arena, out of reach of episodes on a cluster; an episode is given what "
            "is sampled from it as its artifact, and an arena may add to it in score_group()"
        )


class EpisodeWorker:
    """The runtime of a worker's copy of the arena. ``send`` passes a report on and returns what the arena answers, or
    None; it raises TypeError for what can't be sent to another process.

    Whatever comes up in one turn of the event loop, or while a report is on its way, goes into one report.
    """

    def __init__(self, arena: Arena, client: ModelClient, judge: ModelClient, send: Send) -> None:
        self._arena = arena
        self._client = client
        self._judge = judge
        self._send = send
        self._line = WorkerSide()
        self._report = Report()
        self._reporting: asyncio.Task[None] | None = None
        self._context = copy_context()  # of no episode
        self._policy_version = 0
        self._playing: dict[tuple[str, int], _Playing] = {}  # by request id and attempt
        arena.bind(self)
        arena.stores = StoresElsewhere()

    def accept(self, orders: Orders) -> None:
        """Take orders, and carry out those whose turn it is; to be called on the event loop that plays."""
        for due in self._line.arrived(orders):
            self._carry_out(due)

    def _carry_out(self, orders: Orders) -> None:
        self._policy_version = orders.policy_version
        if orders.afresh:
            self.close()
        for key in orders.cancelled:
            self._cancel(key)
        for delivery in orders.deliveries:
            waiting = self._stop_waiting(delivery.parent, delivery.attempt, delivery.call)
            if waiting is None or waiting.done():
                continue
            if delivery.error:
                waiting.set_exception(EpisodeError(delivery.error))
            else:
                waiting.set_result(delivery.results)
        for assignment in orders.assignments:
            known = {answer.call: answer.completion for answer in assignment.answers}
            playing = _Playing(assignment.attempt, known)
            self._playing[assignment.request.id, assignment.attempt] = playing
            playing.task = asyncio.create_task(
                self._play(assignment.request, playing), name=assignment.request.id
            )

    def close(self) -> None:
        """Stop everything that is playing."""
        for key in list(self._playing):
            self._cancel(key)

    # The runtime of the arena's copy

    async def complete(self, call: ModelCall) -> Completion:
        """What the model says, or has said to an earlier attempt at the episode."""
        client = self._judge if call.role_id is None else self._client
        playing = _current.get(None)
        if playing is None:  # a task that an integration keeps for all its episodes
            return await client.complete(call)
        asked = fingerprint(call)
        if asked in playing.known:
            return playing.known[asked]
        completion = await client.complete(call)
        playing.untold.append(Answer(asked, completion))
        return completion

    async def run(
        self, requests: Sequence[EpisodeRequest], parent: ParentCall | None
    ) -> list[GenerateResult]:
        """Ask the arena for children, and wait for them without holding anything.

        Raises:
            EpisodeError: the episode is over.
        """
        if parent is None:
            raise ClusterError("a rollout worker runs the episodes it is given, and starts none of its own")
        playing = _current.get()
        if (parent.request_id, playing.attempt) not in self._playing:
            raise EpisodeError(
                f"episode {parent.request_id} is over, yet a task of it asks for children; an episode awaits its tasks"
            )
        results: ChildResults = asyncio.get_running_loop().create_future()
        playing.waiting[parent.number] = results
        answers, playing.untold = playing.untold, []
        asks = description(requests)
        self._report.spawned.append(
            Spawn(parent.request_id, playing.attempt, parent.number, list(requests), asks, answers)
        )
        self._report_soon()
        return await results

    def get_policy_version(self) -> int:
        return self._policy_version

    # How

    async def _play(self, request: EpisodeRequest, playing: _Playing) -> None:
        _current.set(playing)
        rollout, _ = await execute(self._arena, request)
        self._playing.pop((request.id, playing.attempt), None)
        _give_up(playing)
        self._report.finished.append(Finished(rollout, playing.attempt))
        self._report_soon()

    def _cancel(self, key: tuple[str, int]) -> None:
        playing = self._playing.pop(key, None)
        if playing is not None and playing.task is not None:
            playing.task.cancel()
            _give_up(playing)

    def _stop_waiting(self, parent: str, attempt: int, call: int) -> ChildResults | None:
        playing = self._playing.get((parent, attempt))
        return playing.waiting.pop(call, None) if playing is not None else None

    def _report_soon(self) -> None:
        if self._reporting is None:
            self._reporting = asyncio.create_task(self._report_all(), context=self._context)

    async def _report_all(self) -> None:
        """Send report after report, until there is nothing to tell."""
        try:
            while self._report:
                report, self._report = self._report, Report()
                try:
                    await self._exchange(report)
                except TypeError:
                    await self._send_singly(report)
        finally:
            self._reporting = None

    async def _exchange(self, report: Report) -> None:
        """Send ``report``, and do as the arena answers."""
        orders = await self._send(self._line.sending(report))
        if orders is not None:
            self.accept(orders)

    async def _send_singly(self, report: Report) -> None:
        """Send what can be sent; an episode whose state can't be is an episode that failed."""
        for finished in report.finished:
            try:
                await self._exchange(Report(finished=[finished]))
            except TypeError as error:
                failed = Finished(_unsendable(finished.rollout, error), finished.attempt)
                await self._exchange(Report(finished=[failed]))
        for spawn in report.spawned:
            try:
                await self._exchange(Report(spawned=[spawn]))
            except TypeError as error:
                waiting = self._stop_waiting(spawn.parent, spawn.attempt, spawn.call)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(
                        EpisodeError(
                            f"children of episode {spawn.parent} can't be sent to another process: {error}"
                        )
                    )


def _give_up(playing: _Playing) -> None:
    """Let go of the tasks that wait for children which an episode that is over never awaited."""
    for results in playing.waiting.values():
        results.cancel()


def _unsendable(rollout: Rollout, error: TypeError) -> Rollout:
    return Rollout(
        id=rollout.id,
        episode_type=rollout.episode_type,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        error=f"the rollout of episode {rollout.id} can't be sent to another process; keep its extras, meta and "
        f"info plain: {error}",
    )
