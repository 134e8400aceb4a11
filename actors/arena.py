"""The central arena: sends hierarchical episode requests to the workers and gathers what they played."""

from __future__ import annotations

import asyncio
import itertools
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from ray.exceptions import ActorDiedError, RayActorError

from selfplay_ray.actors.faults import root_cause
from selfplay_ray.actors.protocols import ActorContext, ArenaStatus, Handle, Peers
from selfplay_ray.errors import ClusterError, ConfigError, EpisodeError, SelfPlayError
from selfplay_ray.evaluation import Evaluation
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.runlog.plain_text import one_line
from selfplay_ray.scheduling.coordinator import Coordinator, CreditedGroup
from selfplay_ray.scheduling.messages import Orders, Report

HEARTBEAT_SECONDS = 1.0
UNFINISHED_SHOWN = 5


class ArenaActor:
    """Ray's side of a :class:`~selfplay_ray.coordinator.Coordinator`: who is told what, and who is still there."""

    def __init__(self, context: ActorContext) -> None:
        self._coordinator = Coordinator(context.arena, context.config)
        self._arena = context.arena
        self._log = RunLog(context.run_folder)
        self._failure: SelfPlayError | None = None
        self._started = False
        self._putting = 0
        self._evaluated: dict[str, float] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[str, int] = {}  # of engines, of judges: how many haven't died for good

    async def connect(self, peers: Peers) -> None:
        self._peers = peers

    async def start(self) -> None:
        """Let the workers play, from where the journal ends."""
        await self._arena.on_train_start()
        self._coordinator.draw_evaluation()
        state: bytes | None = await self._peers.queue.state.remote()
        if state is not None:
            self._coordinator.restore(state)
        self._started = True
        for worker in self._peers.workers:
            self._coordinator.scheduler.add_worker(worker)
            self._in_background(self._watch(worker))
        for kind, handles in (("inference engine", self._peers.engines), ("judge", self._peers.judges)):
            self._left[kind] = len(handles)
            for handle in handles:
                self._in_background(self._look_after(kind, handle))
        self._in_background(self._look_for_stragglers())
        self._pump()

    async def report(self, worker: str, report: Report) -> None:
        """Take in what a worker reports."""
        self._pump(lambda: self._coordinator.handle(worker, report))

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
            done=self._coordinator.done and not self._putting,
            failure=self._failure,
            unfinished=[
                f"{request.id} ({request.episode_type}): {state}"
                for request, state in itertools.islice(scheduler.unfinished(), UNFINISHED_SHOWN)
            ],
            replayed=scheduler.replayed,
            overdue=scheduler.overdue,
        )

    async def extend(self, version: int, batches: int) -> None:
        """The step that policy ``version`` takes needs so many batches beside its own; may be said before ``start``."""
        self._coordinator.extend(version, batches)
        self._pump()

    async def evaluate(self) -> None:
        """Begin an evaluation of the policy as it is; ``evaluation`` has its numbers in the end."""
        self._evaluated = None
        self._pump(self._coordinator.evaluate)

    async def evaluation(self) -> dict[str, float] | None:
        """The numbers of the evaluation that was begun last, once it was played."""
        return self._evaluated

    async def finish(self) -> None:
        """The run is over."""
        await self._arena.on_train_end()

    # How

    def _pump(self, event: Callable[[], None] | None = None) -> None:
        """Take in ``event``, then do all that can be done. What can't be done ends the run, and says why."""
        if self._failure is not None or not self._started:
            return
        try:
            if event:
                event()
            orders, groups = self._coordinator.take_orders(), self._coordinator.take_groups()
            for worker, order in orders.items():
                self._send(worker, order)
            if (evaluation := self._coordinator.take_evaluation()) is not None:
                self._keep(evaluation)
        except SelfPlayError as error:
            self._fail(error)
            return
        except NotImplementedError as error:
            self._fail(ConfigError(str(error)))
            return
        except BaseException:  # get_batch, score_group and credit may be somebody else's code
            self._fail(ClusterError(f"the run stopped:\n{traceback.format_exc().rstrip()}"))
            raise
        for credited in groups:
            self._putting += 1
            self._in_background(self._put(credited))

    def _keep(self, evaluation: Evaluation) -> None:
        self._log.write_results(evaluation.version, evaluation.results, evaluation=True)
        self._evaluated = evaluation.flat()

    def _send(self, worker: str, orders: Orders) -> None:
        """Whether they arrive, the heartbeat notices."""
        try:
            self._peers.workers[worker].accept.remote(orders)
        except TypeError as error:
            raise EpisodeError(
                "a request can't be sent to another process; keep its artifact and meta plain: "
                f"{error.__cause__ or error}"  # the cause, without Ray's long account
            ) from error

    async def _put(self, credited: CreditedGroup) -> None:
        self._log.write_results(credited.batch, credited.results)
        await self._peers.queue.put.remote(credited.group, credited.state)
        self._putting -= 1

    async def _look_for_stragglers(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._pump(self._coordinator.scheduler.try_stragglers_elsewhere)

    async def _watch(self, worker: str) -> None:
        """Notice when ``worker`` is lost, and give it work again when it is back."""
        handle, scheduler = self._peers.workers[worker], self._coordinator.scheduler
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                if not await handle.connected.remote():  # a new process in the place of one that died
                    self._pump(lambda: scheduler.remove_worker(worker))
                    await handle.connect.remote(self._peers)
                if worker not in scheduler.workers:
                    self._pump(lambda: scheduler.add_worker(worker))
            except ActorDiedError as died:
                self._lose(worker, died)
                return
            except RayActorError:  # restarting, or out of reach: it is asked again
                self._pump(lambda: scheduler.remove_worker(worker))

    async def _look_after(self, kind: str, handle: Handle) -> None:
        """Let an engine or a judge whose process was replaced take work again, an engine with the weights of now."""
        # Of a class that doesn't say whether it is connected, Ray says whether it is there.
        connected = handle.connected if hasattr(handle, "connected") else handle.__ray_ready__
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                if not await connected.remote():
                    await handle.connect.remote(self._peers)
                    if handle in self._peers.engines:
                        await self._peers.broadcaster.catch_up.remote(handle)
            except ActorDiedError as died:
                self._left[kind] -= 1
                if not self._left[kind]:
                    self._fail(
                        ClusterError(f"the last {kind} died and isn't restarted: {one_line(str(died))}")
                    )
                return
            except RayActorError:  # restarting, or out of reach: it is asked again
                pass

    def _lose(self, worker: str, died: ActorDiedError) -> None:
        """``worker`` won't come back; the run goes on as long as there is another."""
        self._pump(lambda: self._coordinator.scheduler.remove_worker(worker))
        if not self._coordinator.scheduler.workers:
            self._fail(
                ClusterError(
                    f"the last rollout worker, {worker}, died and isn't restarted: {one_line(str(died))}"
                )
            )

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
