"""Who is in flight, whose child it is, who runs it, and what to run again when a worker is lost.

A plain state machine: events go in, orders for workers and finished trees come out. It never waits.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from selfplay_ray.errors import ClusterError
from selfplay_ray.scheduling.messages import Assignment, Delivery, Finished, Orders, Report, Spawn
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout


@dataclass(slots=True)
class _Call:
    """One ``generate_rollouts`` of a running episode: its children in order, and how many are still missing."""

    children: list[str]
    results: dict[str, GenerateResult] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.children)

    def in_order(self) -> list[GenerateResult]:
        return [self.results[child] for child in self.children]


@dataclass(slots=True)
class _Node:
    """One episode in flight. ``worker`` is None while it is queued."""

    request: EpisodeRequest
    attempt: int
    parent: str | None = None
    parent_call: int = 0
    worker: str | None = None
    calls: dict[int, _Call] = field(default_factory=dict)

    @property
    def waiting(self) -> bool:
        """Whether it holds nothing, because it waits for children."""
        return any(not call.complete for call in self.calls.values())

    def all_children(self) -> list[GenerateResult]:
        return [result for number in sorted(self.calls) for result in self.calls[number].in_order()]


class Scheduler:
    """Spreads episode requests over workers.

    Deeper requests go first, because a tree that is nearly done is worth more than a new one; each goes to the
    worker with the fewest running episodes. A waiting parent holds nothing, so no depth of nesting can
    deadlock. A report about an attempt that was given up is ignored.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._queue: list[tuple[int, int, str, int]] = []  # (-depth, arrival, request id, attempt)
        self._arrivals = itertools.count()
        self._attempts = itertools.count(1)
        self._orders: dict[str, Orders] = {}
        self._load: dict[str, int] = {}
        self._finished: list[GenerateResult] = []

    # Events

    def add_worker(self, worker: str) -> None:
        """``worker`` is ready for orders. A worker that comes back comes back empty."""
        if worker in self._load:
            self.remove_worker(worker)
        self._load[worker] = 0
        self._orders[worker] = Orders(0)

    def remove_worker(self, worker: str) -> None:
        """``worker`` is lost: what it ran starts again elsewhere, and the children of that with it."""
        if self._load.pop(worker, None) is None:
            return
        del self._orders[worker]
        for node in [node for node in self._nodes.values() if node.worker == worker]:
            if self._nodes.get(node.request.id) is not node:
                continue  # went with an ancestor
            self._give_up_children(node)
            node.worker, node.calls, node.attempt = None, {}, next(self._attempts)
            self._enqueue(node)

    def submit(self, requests: Sequence[EpisodeRequest]) -> None:
        """Take on root requests.

        Raises:
            ClusterError: an id is in flight already.
        """
        for request in requests:
            self._add(_Node(request, next(self._attempts)))

    def handle(self, worker: str, report: Report) -> list[Rollout]:
        """Take in what ``worker`` reports; the rollouts in it that count, which one that comes twice does not."""
        for spawn in report.spawned:
            self._spawn(worker, spawn)
        return [finished.rollout for finished in report.finished if self._finish(worker, finished)]

    # What is to be done now

    def take_orders(self, policy_version: int) -> dict[str, Orders]:
        """What each worker is to be sent, if anything; what is queued goes out with it."""
        self._dispatch()
        ready = {worker: orders for worker, orders in self._orders.items() if orders}
        for worker, orders in ready.items():
            orders.policy_version = policy_version
            self._orders[worker] = Orders(0)
        return ready

    def take_finished(self) -> list[GenerateResult]:
        """Root trees that are done since the last call."""
        finished, self._finished = self._finished, []
        return finished

    # What is going on

    @property
    def in_flight(self) -> int:
        """How many episodes are queued, running or waiting for children."""
        return len(self._nodes)

    @property
    def workers(self) -> list[str]:
        return list(self._load)

    def running(self, worker: str) -> int:
        """How many of the worker's episodes are running, not waiting for children."""
        return self._load[worker]

    def unfinished(self) -> Iterator[tuple[EpisodeRequest, str]]:
        """Every request in flight and what it is doing, for whoever wants to know why nothing happens."""
        for node in self._nodes.values():
            state = "queued" if node.worker is None else f"on {node.worker}"
            yield node.request, f"{state}, waiting for children" if node.waiting else state

    # How

    def _add(self, node: _Node) -> None:
        if node.request.id in self._nodes:
            raise ClusterError(f"request {node.request.id} is in flight already; ids must be unique in a run")
        self._nodes[node.request.id] = node
        self._enqueue(node)

    def _enqueue(self, node: _Node) -> None:
        heapq.heappush(
            self._queue, (-node.request.depth, next(self._arrivals), node.request.id, node.attempt)
        )

    def _dispatch(self) -> None:
        while self._queue and self._load:
            _, _, request_id, attempt = heapq.heappop(self._queue)
            node = self._nodes.get(request_id)
            if node is None or node.attempt != attempt:
                continue
            node.worker = min(self._load, key=self._load.__getitem__)
            self._load[node.worker] += 1
            self._orders[node.worker].assignments.append(Assignment(node.request, node.attempt))

    def _current(self, worker: str, request_id: str, attempt: int) -> _Node | None:
        node = self._nodes.get(request_id)
        return node if node and node.worker == worker and node.attempt == attempt else None

    def _spawn(self, worker: str, spawn: Spawn) -> None:
        parent = self._current(worker, spawn.parent, spawn.attempt)
        if parent is None or spawn.call in parent.calls:
            return
        if not spawn.requests:
            self._deliver(parent, spawn.call, [])
            return
        if not parent.waiting:
            self._load[worker] -= 1
        parent.calls[spawn.call] = _Call([request.id for request in spawn.requests])
        for request in spawn.requests:
            self._add(_Node(request, next(self._attempts), spawn.parent, spawn.call))

    def _finish(self, worker: str, finished: Finished) -> bool:
        node = self._current(worker, finished.rollout.id, finished.attempt)
        if node is None:
            return False
        if node.waiting:  # it raised, or returned without awaiting its children
            self._give_up_children(node)
            node.calls = {number: call for number, call in node.calls.items() if call.complete}
        else:
            self._load[worker] -= 1
        del self._nodes[node.request.id]
        result = GenerateResult(
            finished.rollout, node.all_children(), node.request.is_trainable, node.request.group
        )
        if node.parent is None:
            self._finished.append(result)
        else:
            self._return_to_parent(self._nodes[node.parent], node.parent_call, result)
        return True

    def _return_to_parent(self, parent: _Node, number: int, result: GenerateResult) -> None:
        call = parent.calls[number]
        call.results[result.rollout.id] = result
        if call.complete:
            if not parent.waiting and parent.worker is not None:
                self._load[parent.worker] += 1
            self._deliver(parent, number, call.in_order())

    def _deliver(self, parent: _Node, number: int, results: list[GenerateResult]) -> None:
        if parent.worker is not None:
            delivery = Delivery(parent.request.id, parent.attempt, number, results)
            self._orders[parent.worker].deliveries.append(delivery)

    def _give_up_children(self, node: _Node) -> None:
        """Forget everything below ``node`` that is in flight, and tell who runs it."""
        for call in node.calls.values():
            for child_id in call.children:
                child = self._nodes.pop(child_id, None)
                if child is None:
                    continue
                self._give_up_children(child)
                if child.worker in self._orders:
                    self._load[child.worker] -= not child.waiting
                    self._orders[child.worker].cancelled.append((child_id, child.attempt))
