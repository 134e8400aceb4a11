"""The arena's actor as a plain class: whatever can't be played ends the run, and its status says why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import games
import pytest

from selfplay_ray.actors.arena import ArenaActor
from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.scheduling.coordinator_state import decode_state
from selfplay_ray.scheduling.exchange import WorkerSide
from selfplay_ray.scheduling.messages import Finished, Orders, Report, Spawn
from selfplay_ray.types import EpisodeRequest, Rollout, RolloutGroup

Batch = Callable[[int], Sequence[EpisodeRequest]]


class Playing(Arena):
    """Plays what ``batch`` makes of the number of batches so far."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch
        self.add_episode("speak", games.Speak())

    def get_batch(self) -> Sequence[EpisodeRequest]:
        return self.batch(self._batches)


class Fresh:
    """The handle of a queue in which nothing was put, or of a broadcaster without weights: both have None to say."""

    def __getattr__(self, method: str) -> Fresh:
        return self

    async def remote(self) -> None:
        return None


class SlowQueue(Fresh):
    """The handle of one that journals when it is told to, and in memory."""

    def __init__(self) -> None:
        self.journal: list[tuple[list[str], bytes]] = []
        self.may_go_on = asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        return _Put(self) if method == "put" else Fresh()


class _Put:
    def __init__(self, queue: SlowQueue) -> None:
        self.queue = queue

    async def remote(self, groups: Sequence[RolloutGroup], state: bytes) -> int:
        await self.queue.may_go_on.wait()
        self.queue.journal.append(([group.id for group in groups], state))
        return len(groups)


class Silent:
    """The handle of a worker that takes orders, and whose reports the test makes up."""

    def __init__(self) -> None:
        self.line = WorkerSide()
        self.orders: list[Orders] = []

    connect = connected = Fresh()

    @property
    def accept(self) -> Silent:
        return self

    async def remote(self, orders: Orders) -> bool:
        self.orders += self.line.arrived(orders)
        return True

    async def tell(self, actor: ArenaActor, report: Report) -> None:
        """``report``, and take what the arena answers."""
        answer = await actor.report("silent", self.line.sending(report))
        if answer is not None:
            await self.remote(answer)


class Connected(Fresh):
    async def remote(self) -> bool:
        return True


class NotYet(Silent):
    """One whose connection is made by the time that somebody asks, but not when it is first sent orders."""

    connected = Connected()

    def __init__(self) -> None:
        super().__init__()
        self.missed = 0

    async def remote(self, orders: Orders) -> bool:
        if self.missed:
            return await super().remote(orders)
        self.missed += 1
        return False


async def started(arena: Arena, folder: Path, queue: Fresh | None = None, **workers: Silent) -> ArenaActor:
    actor = ArenaActor(ActorContext("arena-0", RunConfig(batch_size=2, num_steps=3), arena, folder))
    await actor.connect(Peers(None, queue or Fresh(), None, Fresh(), workers, [], []))
    await actor.start()
    return actor


async def test_with_staleness_of_one_two_batches_are_in_flight_at_once(tmp_path: Path):
    actor = await started(Playing(lambda number: [EpisodeRequest("speak", 0)] * 2), tmp_path)
    status = await actor.status()
    assert (status.in_flight, status.failure, status.done) == (4, None, False)
    assert status.unfinished[0] == "b000000.0 (speak): queued"
    await actor.advance(1)
    assert (await actor.status()).in_flight == 6
    await actor.advance(2)  # three steps need no fourth batch
    assert (await actor.status()).in_flight == 6


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (lambda number: [], "Playing.get_batch() returned no requests; a batch of 0 trains nothing"),
        (lambda number: [EpisodeRequest("speak")], "returned 1 requests, but batch_size is 2"),
        (lambda number: [EpisodeRequest("spaek")] * 2, "unknown episode type 'spaek'; known: speak"),
    ],
)
async def test_a_batch_that_does_not_fit_is_the_failure(batch: Batch, sentence: str, tmp_path: Path):
    status = await (await started(Playing(batch), tmp_path)).status()
    assert status.failure is not None
    assert sentence in str(status.failure)
    assert status.in_flight == 0


async def test_a_batch_that_is_never_made_is_the_failure(tmp_path: Path):
    class Forgetful(Arena):
        pass

    status = await (await started(Forgetful(), tmp_path)).status()
    assert str(status.failure) == "Forgetful must override get_batch() to say what is played next"


async def test_a_batch_that_raises_is_a_bug_and_the_failure_all_the_same(tmp_path: Path):
    """Nobody looks at what a worker's report raises; what status tells ends the run."""
    actor = await started(Playing(lambda number: [EpisodeRequest("speak", 1 // (2 - number))] * 2), tmp_path)
    assert (await actor.status()).failure is None
    with pytest.raises(ZeroDivisionError):
        await actor.advance(1)
    failure = str((await actor.status()).failure)
    assert "return self.batch(self._batches)" in failure  # its traceback, for whoever wrote it
    assert failure.endswith("ZeroDivisionError: integer division or modulo by zero")


async def test_what_a_worker_could_not_take_it_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfplay_ray.actors.supervision.HEARTBEAT_SECONDS", 0.01)
    worker = NotYet()
    await started(Playing(lambda number: [EpisodeRequest("speak", 0)] * 2), tmp_path, silent=worker)
    while not worker.orders:
        await asyncio.sleep(0.01)
    assert worker.missed == 1
    assert worker.orders[0].afresh
    assert len(worker.orders[0].assignments) == 4


async def play_all(actor: ArenaActor, worker: Silent) -> None:
    """Have everything that the worker was told to play end."""
    while not worker.orders:
        await asyncio.sleep(0)
    orders, worker.orders = worker.orders, []
    for assignment in (assignment for order in orders for assignment in order.assignments):
        rollout = Rollout(assignment.request.id, assignment.request.episode_type)
        await worker.tell(actor, Report(finished=[Finished(rollout, assignment.attempt)]))


async def test_a_report_is_answered_with_orders_and_when_it_comes_again_with_the_same(tmp_path: Path):
    worker = Silent()
    actor = await started(Playing(lambda number: [EpisodeRequest("speak", 0)] * 2), tmp_path, silent=worker)
    while not worker.orders:
        await asyncio.sleep(0)
    parent = worker.orders.pop().assignments[0]
    child = EpisodeRequest("speak", 0, id=f"{parent.request.id}/0/0")
    report = worker.line.sending(Report(spawned=[Spawn(parent.request.id, parent.attempt, 0, [child])]))
    answer = await actor.report("silent", report)
    assert answer is not None
    assert [assignment.request.id for assignment in answer.assignments] == [child.id]
    in_flight = (await actor.status()).in_flight
    assert await actor.report("silent", report) is answer
    assert (await actor.status()).in_flight == in_flight
    assert worker.orders == []


async def test_groups_are_journaled_in_order_and_no_state_comes_before_its_groups(tmp_path: Path):
    """A state that says that a group is credited must not be there without it: the arena may be lost at any moment."""
    queue, worker = SlowQueue(), Silent()
    batches = Playing(lambda number: [EpisodeRequest("speak", 0, group=name) for name in "ab"])
    actor = await started(batches, tmp_path, queue, silent=worker)
    await play_all(actor, worker)  # two batches, as staleness allows
    assert not await actor.play_beside({})
    await actor.advance(1)
    await play_all(actor, worker)
    assert (await actor.status()).in_flight == 0
    assert not await actor.play_beside({})  # all is played, and not in the journal
    queue.may_go_on.set()
    while not await actor.play_beside({}):
        await asyncio.sleep(0)
    names = [f"batch-{batch:06d}/{name}" for batch in range(3) for name in "ab"]
    assert [name for ids, _ in queue.journal for name in ids] == names
    for number, (_, state) in enumerate(queue.journal):
        pending = {group.name for group in decode_state(state)[1]}
        put = {name for ids, _ in queue.journal[: number + 1] for name in ids}
        assert not pending & put
    await actor.drain()


async def test_a_drained_arena_has_put_what_was_credited_and_plays_nothing_more(tmp_path: Path):
    queue, worker = SlowQueue(), Silent()
    actor = await started(
        Playing(lambda number: [EpisodeRequest("speak", 0)] * 2), tmp_path, queue, silent=worker
    )
    await play_all(actor, worker)
    draining = asyncio.create_task(actor.drain())
    await asyncio.sleep(0.1)
    assert not draining.done()
    queue.may_go_on.set()
    await draining
    assert sum(len(ids) for ids, _ in queue.journal) == 2
    await actor.advance(1)
    assert worker.orders == []


async def test_an_evaluation_asked_for_twice_is_played_once_and_one_of_another_version_not(tmp_path: Path):
    worker = Silent()
    config = RunConfig(batch_size=2, num_steps=3, eval_every=1, eval_episodes=2)
    arena = Playing(lambda number: [EpisodeRequest("speak", 0)] * 2)
    actor = ArenaActor(ActorContext("arena-0", config, arena, tmp_path))
    assert await actor.evaluation(0) is None  # not before it has started
    await actor.connect(Peers(None, Fresh(), None, Fresh(), {"silent": worker}, [], []))
    await actor.start()
    await play_all(actor, worker)
    assert await actor.evaluation(1) is None  # the engines don't have that yet
    assert await actor.evaluation(0) is None
    assert await actor.evaluation(0) is None
    while not worker.orders:
        await asyncio.sleep(0)
    assert sum(len(order.assignments) for order in worker.orders) == 2
    await play_all(actor, worker)
    numbers = await actor.evaluation(0)
    assert numbers is not None
    await actor.advance(1)
    assert await actor.evaluation(0) == numbers
    await actor.drain()
