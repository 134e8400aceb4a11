"""A rollout worker: plays the episodes it is given, all on one event loop, and reports in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from selfplay_ray.arena import Arena
from selfplay_ray.errors import ClusterError, EpisodeError
from selfplay_ray.execution import execute
from selfplay_ray.messages import Assignment, Finished, Orders, Report, Spawn
from selfplay_ray.runtime import ModelClient, ParentCall
from selfplay_ray.types import Completion, EpisodeRequest, GenerateResult, ModelCall, Rollout

ChildResults = asyncio.Future[list[GenerateResult]]


class EpisodeWorker:
    """The runtime of a worker's copy of the arena. ``send`` passes a report on; it must not block, and raises
    TypeError for what can't be sent to another process.

    Whatever comes up in one turn of the event loop goes into one report.
    """

    def __init__(
        self, arena: Arena, client: ModelClient, judge: ModelClient, send: Callable[[Report], None]
    ) -> None:
        self._arena = arena
        self._client = client
        self._judge = judge
        self._send = send
        self._report = Report()
        self._flushing = False
        self._policy_version = 0
        self._tasks: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._waiting: dict[tuple[str, int, int], ChildResults] = {}
        arena.bind(self)

    def accept(self, orders: Orders) -> None:
        """Take orders; to be called on the event loop that plays."""
        self._policy_version = orders.policy_version
        for request_id, attempt in orders.cancelled:
            self._cancel(request_id, attempt)
        for delivery in orders.deliveries:
            waiting = self._waiting.pop((delivery.parent, delivery.attempt, delivery.call), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(delivery.results)
        for assignment in orders.assignments:
            task = asyncio.create_task(self._play(assignment), name=assignment.request.id)
            self._tasks[assignment.request.id] = (assignment.attempt, task)

    def close(self) -> None:
        """Stop everything that is playing."""
        for request_id, (attempt, _) in list(self._tasks.items()):
            self._cancel(request_id, attempt)

    # The runtime of the arena's copy

    async def complete(self, call: ModelCall) -> Completion:
        return await (self._judge if call.role_id is None else self._client).complete(call)

    async def run(
        self, requests: Sequence[EpisodeRequest], parent: ParentCall | None
    ) -> list[GenerateResult]:
        """Ask the arena for children, and wait for them without holding anything."""
        if parent is None:
            raise ClusterError("a rollout worker runs the episodes it is given, and starts none of its own")
        attempt = self._tasks[parent.request_id][0]
        results: ChildResults = asyncio.get_running_loop().create_future()
        self._waiting[parent.request_id, attempt, parent.number] = results
        self._report.spawned.append(Spawn(parent.request_id, attempt, parent.number, list(requests)))
        self._flush_soon()
        return await results

    def get_policy_version(self) -> int:
        return self._policy_version

    # How

    async def _play(self, assignment: Assignment) -> None:
        rollout, _ = await execute(self._arena, assignment.request)
        if self._tasks.get(assignment.request.id, (None,))[0] == assignment.attempt:
            del self._tasks[assignment.request.id]
        self._report.finished.append(Finished(rollout, assignment.attempt))
        self._flush_soon()

    def _cancel(self, request_id: str, attempt: int) -> None:
        known, task = self._tasks.get(request_id, (None, None))
        if task is not None and known == attempt:
            del self._tasks[request_id]
            task.cancel()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        report, self._report = self._report, Report()
        try:
            self._send(report)
        except TypeError:
            self._send_singly(report)

    def _send_singly(self, report: Report) -> None:
        """Send what can be sent; an episode whose state can't be is an episode that failed."""
        for finished in report.finished:
            try:
                self._send(Report(finished=[finished]))
            except TypeError as error:
                self._send(
                    Report(finished=[Finished(_unsendable(finished.rollout, error), finished.attempt)])
                )
        for spawn in report.spawned:
            try:
                self._send(Report(spawned=[spawn]))
            except TypeError as error:
                self._waiting.pop((spawn.parent, spawn.attempt, spawn.call)).set_exception(
                    EpisodeError(
                        f"children of episode {spawn.parent} can't be sent to another process: {error}"
                    )
                )


def _unsendable(rollout: Rollout, error: TypeError) -> Rollout:
    return Rollout(
        id=rollout.id,
        episode_type=rollout.episode_type,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        error=f"the rollout of episode {rollout.id} can't be sent to another process; keep its extras, meta and "
        f"info plain: {error}",
    )
