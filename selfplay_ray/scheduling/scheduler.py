"""Who is in flight, whose child it is, who runs it, and what to run again when a worker is lost or too slow.

A plain state machine: events go in, orders for workers and finished trees come out. It never waits.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from selfplay_ray.errors import ClusterError
from selfplay_ray.scheduling.exchange import ArenaSide
from selfplay_ray.scheduling.messages import Answer, Assignment, Delivery, Finished, Orders, Report, Spawn
from selfplay_ray.scheduling.patience import REMEMBERED, patience
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout

LEAST_PATIENCE = 60.0
"""An episode may play so many seconds …"""
ENOUGH_KNOWN = 20
"""… and as long as it likes until so many of its type have ended; see ``patience``."""
MORE_AT_HOME = 3
"""A child goes to its parent's worker if that plays at most so many episodes more than the one with the least."""
TOLERATED_LOSSES = 5
"""An episode has failed when so many workers were lost while they played it: it may be what kills them."""


@dataclass(slots=True)
class _Call:
    """One ``generate_rollouts`` of an episode in flight: its children in order, and the results that are in.

    ``asks`` tells what was asked for. It outlives the worker that asked, so that no child is run twice.
    """

    children: list[str]
    asks: str
    results: dict[str, GenerateResult] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.children)

    def in_order(self) -> list[GenerateResult]:
        return [self.results[child] for child in self.children]


@dataclass(slots=True)
class _Run:
    """An attempt at an episode, on ``worker``, that has ``asked`` for the children of some calls.

    It has played for ``played`` seconds until ``since``; since then it plays or waits.
    """

    worker: str
    since: float
    played: float = 0.0
    asked: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Worker:
    """``load`` is how many of its episodes play and don't wait for children, ``held`` how many it has."""

    load: int = 0
    held: int = 0
    line: ArenaSide = field(default_factory=ArenaSide)


@dataclass(slots=True)
class _Node:
    """One episode in flight. It is ``queued`` under the number that it has in the queue, and played by its ``runs``:
    one, or two while the first is overdue. Their ``answers`` are known as far as they have asked for children.
    ``losses`` counts the workers that were lost as they played it."""

    request: EpisodeRequest
    parent: str | None = None
    parent_call: int = 0
    queued: int | None = None
    losses: int = 0
    runs: dict[int, _Run] = field(default_factory=dict)  # by attempt
    calls: dict[int, _Call] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def waits(self, run: _Run) -> bool:
        """Whether ``run`` holds nothing, because it waits for children."""
        return any(not self.calls[number].complete for number in run.asked)


class Scheduler:
    """Spreads episode requests over workers.

    Deeper requests go first, because a tree that is nearly done is worth more than a new one; each goes to the
    worker with the fewest running episodes, a child rather to its parent's, where it takes fewer messages. A waiting
    parent holds nothing, so no depth of nesting can deadlock. A report about an attempt that was given up is ignored.

    What a lost worker played starts again elsewhere, by replay: what the model has said is said again, and the same
    calls for children find those that were run, or are being run, for the attempt before. What takes far too long is
    tried on another worker as well, and whichever ends first is it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes: dict[str, _Node] = {}
        self._queue: list[tuple[int, int, str]] = []  # (-depth, number, request id)
        self._numbers = itertools.count()
        self._attempts = itertools.count(time.time_ns())  # none of a scheduler that this one replaces
        self._workers: dict[str, _Worker] = {}
        self._finished: list[GenerateResult] = []
        self._clock = clock
        self._seconds: dict[str, deque[float]] = {}  # that the last ones of an episode type have played
        self.replayed = 0  # episodes that a lost worker had begun
        self.overdue = 0  # episodes that were tried elsewhere as well

    # Events

    def add_worker(self, worker: str) -> list[Rollout]:
        """``worker`` is ready for orders. One that was there before comes back empty, and returns what is given up with
        what it had."""
        given_up = self.remove_worker(worker)
        self._workers[worker] = _Worker()
        return given_up

    def remove_worker(self, worker: str) -> list[Rollout]:
        """``worker`` is lost: what it played starts again elsewhere.

        Returns the rollouts of episodes that are given up: too many workers were lost while they played.
        """
        if self._workers.pop(worker, None) is None:
            return []
        orphans = []
        for node in self._nodes.values():
            lost = [attempt for attempt, run in node.runs.items() if run.worker == worker]
            for attempt in lost:
                node.losses += not node.waits(node.runs.pop(attempt))
            if lost and not node.runs and node.queued is None:
                orphans.append(node)
        for node in orphans:
            if node.losses < TOLERATED_LOSSES:
                self.replayed += 1
                self._enqueue(node)
        # A child's end goes with its parent's, and what is given up with its parent isn't told.
        given_up = [node for node in orphans if node.losses >= TOLERATED_LOSSES]
        return [self._give_up(node) for node in given_up if node.request.id in self._nodes]

    def submit(self, requests: Sequence[EpisodeRequest]) -> None:
        """Take on root requests.

        Raises:
            ClusterError: an id is in flight already.
        """
        for request in requests:
            self._add(_Node(request))

    def handle(self, worker: str, report: Report) -> list[Rollout]:
        """Take in what ``worker`` reports; the rollouts in it that count, which one that comes twice does not."""
        for spawn in report.spawned:
            self._spawn(worker, spawn)
        return [finished.rollout for finished in report.finished if self._finish(worker, finished)]

    def try_stragglers_elsewhere(self) -> None:
        """Queue what is overdue once more; to be called now and then."""
        now = self._clock()
        limits = {
            kind: patience(seconds, ENOUGH_KNOWN, LEAST_PATIENCE) for kind, seconds in self._seconds.items()
        }
        for node in self._nodes.values():
            if len(node.runs) != 1 or node.queued is not None:
                continue
            (run,) = node.runs.values()
            limit = limits.get(node.request.episode_type)
            if limit is not None and not node.waits(run) and run.played + now - run.since > limit:
                self.overdue += 1
                self._enqueue(node)

    # What is to be done now

    def take_orders(self, policy_version: int) -> dict[str, Orders]:
        """What each worker is to be sent, if anything; what is queued goes out with it."""
        self._dispatch()
        taken = {name: worker.line.take(policy_version) for name, worker in self._workers.items()}
        return {name: orders for name, orders in taken.items() if orders is not None}

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
        return list(self._workers)

    def line(self, worker: str) -> ArenaSide | None:
        """What passes between it and us; None if it is lost."""
        known = self._workers.get(worker)
        return known.line if known else None

    def running(self, worker: str) -> int:
        """How many of the worker's episodes are running, not waiting for children."""
        return self._workers[worker].load

    def unfinished(self) -> Iterator[tuple[EpisodeRequest, str]]:
        """Every request in flight and what it is doing, for whoever wants to know why nothing happens."""
        for node in self._nodes.values():
            states = [
                f"on {run.worker}" + (", waiting for children" if node.waits(run) else "")
                for run in node.runs.values()
            ]
            yield node.request, "; ".join([*states, *(["queued"] if node.queued is not None else [])])

    # How

    def _add(self, node: _Node) -> None:
        if node.request.id in self._nodes:
            raise ClusterError(f"request {node.request.id} is in flight already; ids must be unique in a run")
        self._nodes[node.request.id] = node
        self._enqueue(node)

    def _enqueue(self, node: _Node) -> None:
        node.queued = next(self._numbers)
        heapq.heappush(self._queue, (-node.request.depth, node.queued, node.request.id))

    def _dispatch(self) -> None:
        while self._queue and self._workers:
            _, number, request_id = heapq.heappop(self._queue)
            node = self._nodes.get(request_id)
            if node is None or node.queued != number:
                continue
            worker, attempt = self._worker_for(node), next(self._attempts)
            node.queued, node.runs[attempt] = None, _Run(worker, self._clock())
            self._workers[worker].load += 1
            self._workers[worker].held += 1
            assignment = Assignment(node.request, attempt, list(node.answers.values()))
            self._orders(worker).assignments.append(assignment)

    def _worker_for(self, node: _Node) -> str:
        """One that isn't at it already, unless all are: for a child its parent's, unless that plays something while
        another has nothing at all to do, or is far busier; otherwise the one with the least to do."""
        at_it = {run.worker for run in node.runs.values()}
        candidates = [worker for worker in self._workers if worker not in at_it] or list(self._workers)
        least = min(candidates, key=self.running)
        parents = self._nodes[node.parent].runs.values() if node.parent else ()
        home = min({run.worker for run in parents} - at_it, key=self.running, default=least)
        if not self.running(home):
            return home
        idle = next((worker for worker in candidates if not self._workers[worker].held), None)
        far_busier = self.running(home) > self.running(least) + MORE_AT_HOME
        return idle or (least if far_busier else home)

    def _orders(self, worker: str) -> Orders:
        """What it will be told next."""
        return self._workers[worker].line.orders

    def _current(self, worker: str, request_id: str, attempt: int) -> tuple[_Node, _Run] | None:
        node = self._nodes.get(request_id)
        run = node.runs.get(attempt) if node else None
        return (node, run) if node and run and run.worker == worker else None

    def _spawn(self, worker: str, spawn: Spawn) -> None:
        current = self._current(worker, spawn.parent, spawn.attempt)
        if current is None or spawn.call in current[1].asked:
            return
        parent, run = current
        parent.answers.update((answer.call, answer) for answer in spawn.answers)
        call = parent.calls.get(spawn.call)
        if call is None:
            call = _Call([request.id for request in spawn.requests], spawn.asks)
            parent.calls[spawn.call] = call
            for request in spawn.requests:
                self._add(_Node(request, spawn.parent, spawn.call))
        elif call.asks != spawn.asks:
            error = (
                f"episode {spawn.parent} was played again and doesn't ask for the children it had asked for: now for "
                f"{spawn.asks}, before for {call.asks}. Chance in an episode comes from state.rng, and what it does "
                "must not depend on which of several answers comes first"
            )
            delivery = Delivery(spawn.parent, spawn.attempt, spawn.call, [], error)
            self._orders(worker).deliveries.append(delivery)
            return
        if not call.complete and not parent.waits(run):
            self._stop_playing(run)
        run.asked.add(spawn.call)
        if call.complete:
            self._deliver(parent, spawn.attempt, spawn.call)

    def _finish(self, worker: str, finished: Finished) -> bool:
        current = self._current(worker, finished.rollout.id, finished.attempt)
        if current is None:
            return False
        node, run = current
        if not node.waits(run):
            self._stop_playing(run)
        del node.runs[finished.attempt]
        self._workers[worker].held -= 1
        played = self._seconds.setdefault(node.request.episode_type, deque(maxlen=REMEMBERED))
        played.append(run.played)
        self._end(node, finished.rollout, run.asked)
        return True

    def _give_up(self, node: _Node) -> Rollout:
        request = node.request
        reason = f"{node.losses} workers were lost while they played it; what it runs may be what kills them"
        rollout = Rollout(request.id, request.episode_type, request.artifact, error=reason)
        self._end(node, rollout, node.calls)
        return rollout

    def _end(self, node: _Node, rollout: Rollout, asked: Collection[int]) -> None:
        """``node`` is over, and what it ``asked`` for, by the numbers of its calls, belongs to it as far as it is
        complete."""
        self._call_off(node)
        # What it asked for and has not awaited, or an earlier attempt has asked for, nobody waits for.
        self._give_up_children(node)
        complete = [node.calls[number] for number in sorted(asked) if node.calls[number].complete]
        children = [result for call in complete for result in call.in_order()]
        result = GenerateResult(rollout, children, node.request.is_trainable, node.request.group)
        if node.parent is None:
            self._finished.append(result)
        else:
            self._return_to_parent(self._nodes[node.parent], node.parent_call, result)

    def _return_to_parent(self, parent: _Node, number: int, result: GenerateResult) -> None:
        call = parent.calls[number]
        call.results[result.rollout.id] = result
        if not call.complete:
            return
        for attempt, run in parent.runs.items():
            if number in run.asked:
                if not parent.waits(run):
                    self._workers[run.worker].load += 1
                    run.since = self._clock()
                self._deliver(parent, attempt, number)

    def _deliver(self, parent: _Node, attempt: int, number: int) -> None:
        results = parent.calls[number].in_order()
        delivery = Delivery(parent.request.id, attempt, number, results)
        self._orders(parent.runs[attempt].worker).deliveries.append(delivery)

    def _stop_playing(self, run: _Run) -> None:
        """It waits from now on, or is over."""
        self._workers[run.worker].load -= 1
        run.played += self._clock() - run.since

    def _give_up_children(self, node: _Node) -> None:
        """Forget everything below ``node`` that is in flight."""
        for call in node.calls.values():
            for child_id in call.children:
                child = self._nodes.get(child_id)
                if child is not None:
                    self._give_up_children(child)
                    self._call_off(child)

    def _call_off(self, node: _Node) -> None:
        """Forget ``node``, and tell who runs it."""
        del self._nodes[node.request.id]
        for attempt, run in node.runs.items():
            self._workers[run.worker].load -= not node.waits(run)
            self._workers[run.worker].held -= 1
            self._orders(run.worker).cancelled.append((node.request.id, attempt))
