"""The central arena: sends hierarchical episode requests to the workers and gathers what they played."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from ray.exceptions import RayActorError

from selfplay_ray.actors.faults import root_cause
from selfplay_ray.actors.notes import Notes
from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Peers
from selfplay_ray.actors.supervision import HEARTBEAT_SECONDS, Ward, look_after, lost_for_good
from selfplay_ray.errors import ClusterError, ConfigError, EpisodeError, SelfPlayError
from selfplay_ray.evaluation import Evaluation
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.scheduling.coordinator import Coordinator, CreditedGroup
from selfplay_ray.scheduling.messages import Orders, Report

UNFINISHED_SHOWN = 5
DRAIN_POLL_SECONDS = 0.02


class ArenaActor:
    """Ray's side of a :class:`~selfplay_ray.coordinator.Coordinator`: who is told what, and who is still there.

    What it knows is in the journal with the groups that were put, so that one that was replaced goes on from there.
    """

    def __init__(self, context: ActorContext) -> None:
        self._coordinator = Coordinator(context.arena, context.config)
        self._arena = context.arena
        self._patience = context.config.hang_timeout
        self._log = RunLog(context.run_folder)
        self._notes = Notes()
        self._failure: SelfPlayError | None = None
        self._connected = self._started = self._draining = False
        # Groups that are to be put into the journal, and how many aren't there yet.
        self._credited: asyncio.Queue[CreditedGroup] = asyncio.Queue()
        self._unput = 0
        self._evaluating: int | None = None
        self._evaluated: dict[int, dict[str, float]] = {}  # by version
        self._tasks: set[asyncio.Task[None]] = set()
        self._wards: dict[str, Ward] = {}  # the workers

    async def connect(self, peers: Peers) -> None:
        self._peers = peers
        self._connected = True

    async def connected(self) -> bool:
        return self._connected

    async def start(self) -> None:
        """Let the workers play, from where the journal ends."""
        await self._arena.on_train_start()
        self._coordinator.draw_evaluation()
        state: bytes | None = await self._peers.queue.state.remote()
        if state is not None:
            self._coordinator.restore(state)
        version: int | None = await self._peers.broadcaster.version.remote()
        if version is not None:
            self._coordinator.version = version
        self._started = True
        for name, handle in self._peers.workers.items():
            self._wards[name] = Ward(
                name, handle, self._patience, partial(handle.connect.remote, self._peers)
            )
            self._coordinator.add_worker(name)
            self._in_background(self._watch(self._wards[name]))
        self._in_background(self._look_for_stragglers())
        self._in_background(self._put_what_is_credited())
        self._pump()

    async def report(self, worker: str, report: Report) -> Orders | None:
        """Take in what a worker reports, and tell it what there is to tell; the same again, if it comes again."""
        if ward := self._wards.get(worker):
            ward.hear()
        line = self._coordinator.scheduler.line(worker)
        if line is None:
            return None
        if line.is_new(report):
            line.answer(report, self._pump(lambda: self._coordinator.handle(worker, report), asker=worker))
        return line.answer_again(report)

    async def fail(self, reason: str) -> None:
        """A peer can't go on."""
        self._fail(ClusterError(reason))

    async def advance(self, version: int) -> None:
        """The engines sample with ``version`` from now on."""
        self._coordinator.version = version
        self._pump()

    async def status(self) -> ArenaStatus:
        scheduler, budget = self._coordinator.scheduler, self._coordinator.budget
        return ArenaStatus(
            version=self._coordinator.version,
            finished=budget.finished,
            failed=budget.failed,
            in_flight=scheduler.in_flight,
            done=self._done,
            failure=self._failure,
            unfinished=[
                f"{request.id} ({request.episode_type}): {state}"
                for request, state in itertools.islice(scheduler.unfinished(), UNFINISHED_SHOWN)
            ],
            replayed=scheduler.replayed,
            overdue=scheduler.overdue,
            warnings=self._notes.take(),
        )

    async def play_beside(self, batches: Mapping[int, int]) -> bool:
        """The steps that these policy versions take need so many batches beside their own. Returns whether all that the
        run needs is played, and in the queue."""
        for version, more in batches.items():
            self._coordinator.extend(version, more)
        self._pump()
        return self._done

    async def evaluation(self, version: int) -> dict[str, float] | None:
        """The numbers of the evaluation of policy ``version``, once it was played; it begins when it is first asked
        for, and the engines have that version."""
        begun = version == self._evaluating or version in self._evaluated
        if self._started and not begun and version == self._coordinator.version:
            self._evaluating = version
            self._pump(self._coordinator.evaluate)
        return self._evaluated.get(version)

    async def finish(self) -> None:
        """The run is over."""
        await self._arena.on_train_end()

    async def drain(self) -> None:
        """Have nothing more played, and return when all that was credited is in the queue."""
        self._draining = True
        while self._unput and self._failure is None:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        self._log.close()

    # How

    @property
    def _done(self) -> bool:
        return self._started and self._coordinator.done and not self._unput

    def _pump(self, event: Callable[[], None] | None = None, asker: str = "") -> Orders | None:
        """Take in ``event``, then do all that can be done. What can't be done ends the run, and says why.

        Returns the orders of ``asker``; the others are sent theirs.
        """
        if self._failure is not None or not self._started or self._draining:
            return None
        try:
            if event:
                event()
            orders, groups = self._coordinator.take_orders(), self._coordinator.take_groups()
            answer = orders.pop(asker, None)
            for worker, order in orders.items():
                self._send(worker, order)
            if (evaluation := self._coordinator.take_evaluation()) is not None:
                self._keep(evaluation)
        except SelfPlayError as error:
            self._fail(error)
            return None
        except NotImplementedError as error:
            self._fail(ConfigError(str(error)))
            return None
        except BaseException:  # get_batch, score_group and credit may be somebody else's code
            self._fail(ClusterError(f"the run stopped:\n{traceback.format_exc().rstrip()}"))
            raise
        for credited in groups:
            self._unput += 1
            self._credited.put_nowait(credited)
        return answer

    def _keep(self, evaluation: Evaluation) -> None:
        self._log.write_results(evaluation.version, evaluation.results, evaluation=True)
        self._evaluated[evaluation.version] = evaluation.flat()

    def _send(self, worker: str, orders: Orders) -> None:
        try:
            sent = self._peers.workers[worker].accept.remote(orders)
        except TypeError as error:
            raise EpisodeError(
                "a request can't be sent to another process; keep its artifact and meta plain: "
                f"{error.__cause__ or error}"  # the cause, without Ray's long account
            ) from error
        self._in_background(self._confirm(worker, sent))

    async def _confirm(self, worker: str, sent: Awaitable[bool]) -> None:
        """See that orders were taken: what a worker is at that may have missed some is played elsewhere."""
        try:
            taken = await sent
        except RayActorError:
            taken = False
        if taken:
            self._wards[worker].hear()
        else:
            self._lose(worker)

    async def _put_what_is_credited(self) -> None:
        """One transaction after the other, so that a state never comes before a group that it says is credited."""
        while True:
            credited = [await self._credited.get()]
            while not self._credited.empty():
                credited.append(self._credited.get_nowait())
            await self._put(credited)
            self._unput -= len(credited)

    async def _put(self, credited: Sequence[CreditedGroup]) -> None:
        for one in credited:
            self._log.write_results(one.batch, one.results)
        await self._peers.queue.put.remote([one.group for one in credited], credited[-1].state)

    async def _look_for_stragglers(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._pump(self._coordinator.scheduler.try_stragglers_elsewhere)

    async def _watch(self, ward: Ward) -> None:
        """Notice when a worker is lost, and give it work when it is back."""
        died = await look_after(ward, lambda: self._lose(ward.name), lambda: self._welcome(ward.name))
        self._lose(ward.name)
        if not self._coordinator.scheduler.workers:
            self._fail(lost_for_good(f"the last rollout worker, {ward.name},", died))

    def _lose(self, worker: str) -> None:
        self._pump(lambda: self._coordinator.lose_worker(worker))

    def _welcome(self, worker: str) -> None:
        if worker not in self._coordinator.scheduler.workers:
            self._pump(lambda: self._coordinator.add_worker(worker))

    def _in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)  # asyncio itself keeps no strong reference
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            cause = root_cause(error)
            self._fail(
                cause if isinstance(cause, SelfPlayError) else ClusterError(f"the run stopped: {cause!r}")
            )

    def _fail(self, error: SelfPlayError) -> None:
        """The run can't go on; the first reason is the one that is told."""
        self._failure = self._failure or error
