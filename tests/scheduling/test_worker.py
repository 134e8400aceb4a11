"""Workers and scheduler together: messages are pumped in this process, in a fixed order, without waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from selfplay_ray import (
    Arena,
    Artifact,
    Completion,
    Episode,
    EpisodeRequest,
    GenerateResult,
    Message,
    MockInferenceClient,
    ModelCall,
    Role,
    Rubric,
)
from selfplay_ray.errors import ClusterError, EpisodeError
from selfplay_ray.execution import current_run
from selfplay_ray.scheduling.messages import Assignment, Delivery, Orders, Report, description
from selfplay_ray.scheduling.scheduler import Scheduler
from selfplay_ray.scheduling.worker import EpisodeWorker


def reply(messages: Sequence[Message]) -> str:
    return f"re: {messages[-1]['content']}"


class OneAtATime(MockInferenceClient):
    """Serves a single call at a time, each over a few turns of the event loop."""

    def __init__(self, response_fn: Callable[[Sequence[Message]], str]) -> None:
        super().__init__(response_fn)
        self._free = asyncio.Lock()

    async def complete(self, call: ModelCall) -> Completion:
        async with self._free:
            await asyncio.sleep(0)
            return await super().complete(call)


class Node(Episode):
    """Speaks, has children level by level as the artifact says ([3, 2]: three, of two each), and speaks again."""

    rubric = Rubric([lambda rollout, arena: {"A": float(sum(len(s.completion_text) for s in rollout.steps))}])

    async def rollout(self, arena, artifact, state):
        await self.call_model("A", f"before {state.rng.random()}", arena)
        if artifact:
            width, *below = artifact
            state.child_results = await arena.generate_rollouts([EpisodeRequest("node", below)] * width)
        await self.call_model("A", f"after {[r.rewards for r in state.child_results]}", arena)
        return state


class Scripted(Episode):
    """Plays a function."""

    def __init__(self, play: Callable[[Arena], Any]) -> None:
        self.play_script = play

    async def rollout(self, arena, artifact, state):
        state.data["result"] = await self.play_script(arena)
        return state

    def get_extras(self, state):
        return dict(state.data)


def arena_of(client: MockInferenceClient | None = None, **scripts: Callable[[Arena], Any]) -> Arena:
    arena = Arena(client)
    arena.add_role(Role("A", "be A"))
    arena.add_episode("node", Node())
    for name, play in scripts.items():
        arena.add_episode(name, Scripted(play))
    return arena


class Reports(list[Report]):
    """Keeps what a worker reports; there is never anything to answer."""

    async def __call__(self, report: Report) -> None:
        self.append(report)


class Pump:
    """A scheduler and its workers, and the messages between them."""

    TURNS = 20_000

    def __init__(self, workers: int = 1, client: MockInferenceClient | None = None, **scripts: Any) -> None:
        self.scheduler = Scheduler()
        self.client = client or MockInferenceClient(reply)
        self.scripts = scripts
        self.reports: list[tuple[str, Report, asyncio.Future[Orders | None]]] = []
        self.workers: dict[str, EpisodeWorker] = {}
        self.orders: list[Orders] = []
        self.finished: list[GenerateResult] = []
        for number in range(workers):
            self.start(f"w{number}")

    def start(self, name: str) -> None:
        self.scheduler.add_worker(name)
        self.workers[name] = EpisodeWorker(
            arena_of(**self.scripts),
            self.client,
            self.client,
            partial(self.send, name),
        )

    def send(self, name: str, report: Report) -> asyncio.Future[Orders | None]:
        answer: asyncio.Future[Orders | None] = asyncio.get_running_loop().create_future()
        self.reports.append((name, report, answer))
        return answer

    def kill(self, name: str) -> None:
        self.workers.pop(name).close()
        self.scheduler.remove_worker(name)

    async def turn(self) -> None:
        await asyncio.sleep(0)
        reports, self.reports = self.reports, []
        assert all(report for _, report, _ in reports), "a worker with nothing to say says nothing"
        answers = {name: answer for name, _, answer in reports}
        assert len(answers) == len(reports), "a report waits for the answer to the one before"
        for name, report, _ in reports:
            self.scheduler.handle(name, report)
        self.finished += self.scheduler.take_finished()
        for name, orders in self.scheduler.take_orders(policy_version=3).items():
            self.orders.append(orders)
            if name in answers:
                answers.pop(name).set_result(orders)
            else:
                self.workers[name].accept(orders)
        for answer in answers.values():
            answer.set_result(None)

    async def run(self, *requests: EpisodeRequest) -> list[GenerateResult]:
        """Submit ``requests`` and pump until all is over and quiet."""
        self.scheduler.submit(requests)
        for _ in range(self.TURNS):
            await self.turn()
            if not self.scheduler.in_flight:
                break
        assert self.scheduler.in_flight == 0, list(self.scheduler.unfinished())
        for _ in range(5):  # what was called off hears of it
            await self.turn()
        self.check_nothing_is_left()
        return sorted(self.finished, key=lambda tree: tree.rollout.id)

    def check_nothing_is_left(self) -> None:
        assert self.scheduler.take_orders(0) == {}
        for name, worker in self.workers.items():
            assert self.scheduler.running(name) == 0
            assert worker._playing == {}


def shape(tree: GenerateResult) -> dict[str, Any]:
    """Everything about a tree but the time it took."""
    rollout = tree.rollout
    return {
        "id": rollout.id,
        "texts": [step.completion_text for step in rollout.steps],
        "prompts": [step.prompt for step in rollout.steps],
        "rewards": rollout.rewards,
        "extras": rollout.extras,
        "error": rollout.error,
        "trainable": tree.is_trainable,
        "children": [shape(child) for child in tree.children],
    }


def request(kind: str = "node", artifact: Any = None, name: str = "b000000.0", **more: Any) -> EpisodeRequest:
    return EpisodeRequest(kind, artifact, id=name, **more)


def asked(call: ModelCall) -> tuple[int, int, str]:
    return call.seed, call.priority, call.messages[-1]["content"]


async def test_a_tree_of_depth_four_finishes_on_one_worker_one_model_call_at_a_time():
    client = OneAtATime(reply)
    (tree,) = await Pump(1, client).run(request(artifact=[3, 3, 3, 3]))
    rollouts = tree.all_rollouts()
    assert len(rollouts) == 1 + 3 + 9 + 27 + 81
    assert max(request(name=rollout.id).depth for rollout in rollouts) == 4
    assert all(rollout.error is None for rollout in rollouts)
    assert len(client.calls) == 2 * len(rollouts)


@pytest.mark.parametrize("workers", [1, 3])
async def test_an_episode_never_knows_which_runtime_it_has(workers):
    requests = [
        request(artifact=[2, 2], name="b000000.0"),
        request(artifact=[], name="b000000.1"),
        request(artifact=[3], name="b000000.2", is_trainable=False),
        request("nothing there", name="b000000.3"),
    ]
    here_client, there_client = MockInferenceClient(reply), MockInferenceClient(reply)
    here = await arena_of(here_client).runtime.run(requests, None)
    there = await Pump(workers, there_client).run(*requests)
    for one, other in zip(here, there, strict=True):
        if one.rollout.error:
            assert "unknown episode type" in one.rollout.error
            assert "unknown episode type" in (other.rollout.error or "")
        else:
            assert shape(one) == shape(other)
    assert sorted(map(asked, here_client.calls)) == sorted(map(asked, there_client.calls))


async def test_messages_are_batched_both_ways():
    pump = Pump(1)
    await pump.run(*(request(artifact=[4], name=f"r{i}") for i in range(10)))
    assert len(pump.orders[0].assignments) == 10
    # roots, their children, the children's results: a message each, though 50 episodes were played
    assert len(pump.orders) == 3
    assert pump.orders[1].assignments[0].request.depth == 1
    assert len(pump.orders[2].deliveries) == 10


async def test_workers_know_the_policy_version_of_their_orders():
    pump = Pump(1)
    await pump.run(request(artifact=[]))
    assert pump.workers["w0"].get_policy_version() == 3


async def test_no_children_are_no_wait():
    async def none(arena: Arena) -> int:
        return len(await arena.generate_rollouts([]))

    (tree,) = await Pump(1, none=none).run(request("none"))
    assert tree.rollout.extras == {"result": 0}


async def test_a_parent_that_raises_while_its_children_run():
    started: list[str] = []

    async def child(arena: Arena) -> None:
        run = current_run()
        assert run is not None
        started.append(run.request.id)
        await asyncio.Event().wait()

    async def parent(arena: Arena) -> None:
        task = asyncio.create_task(arena.generate_rollouts([EpisodeRequest("child")] * 2))
        while len(started) < 2:
            await asyncio.sleep(0)
        task.add_done_callback(lambda task: started.append("let go" if task.cancelled() else "kept"))
        raise RuntimeError("changed my mind")

    (tree,) = await Pump(2, child=child, parent=parent).run(request("parent"))
    assert "changed my mind" in (tree.rollout.error or "")
    assert tree.children == []
    assert sorted(started[:2]) == ["b000000.0/0/0", "b000000.0/0/1"]
    assert started[2:] == ["let go"]


async def test_a_parent_that_never_awaits_its_children():
    tasks: list[asyncio.Task[list[GenerateResult]]] = []

    async def parent(arena: Arena) -> str:
        tasks.append(asyncio.create_task(arena.generate_rollouts([EpisodeRequest("node", [])])))
        await asyncio.sleep(0)
        return "done"

    (tree,) = await Pump(1, parent=parent).run(request("parent"))
    assert (tree.rollout.error, tree.rollout.extras, tree.children) == (None, {"result": "done"}, [])
    assert tasks[0].cancelled()


async def test_a_task_that_outlives_its_episode_gets_no_children():
    tasks: list[asyncio.Task[list[GenerateResult]]] = []

    async def late(arena: Arena) -> list[GenerateResult]:
        for _ in range(20):
            await asyncio.sleep(0)
        return await arena.generate_rollouts([EpisodeRequest("node", [])])

    async def parent(arena: Arena) -> None:
        tasks.append(asyncio.create_task(late(arena)))

    await Pump(1, parent=parent).run(request("parent"))
    with pytest.raises(EpisodeError, match=r"episode b000000.0 is over, yet a task of it asks for children"):
        await tasks[0]


async def test_two_calls_for_children_at_once():
    async def parent(arena: Arena) -> list[str]:
        both = await asyncio.gather(
            arena.generate_rollouts([EpisodeRequest("node", [2])]),
            arena.generate_rollouts([EpisodeRequest("node", []), EpisodeRequest("node", [])]),
        )
        return [result.rollout.id for results in both for result in results]

    (tree,) = await Pump(1, parent=parent).run(request("parent"))
    expected = ["b000000.0/0/0", "b000000.0/1/0", "b000000.0/1/1"]
    assert tree.rollout.extras == {"result": expected}
    assert [child.rollout.id for child in tree.children] == expected


@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_a_worker_lost_at_any_time_changes_nothing_but_the_time(turns):
    requests = [request(artifact=[2, 2], name=f"r{i}") for i in range(3)]
    undisturbed = await Pump(2).run(*requests)
    pump = Pump(2, OneAtATime(reply))
    pump.scheduler.submit(requests)
    for _ in range(turns):
        await pump.turn()
    pump.kill("w0")
    for _ in range(5):
        await pump.turn()
    pump.start("w0")
    assert [shape(tree) for tree in await pump.run()] == [shape(tree) for tree in undisturbed]


class Counting(MockInferenceClient):
    """Knows how often it was asked what, which a call's seed tells apart."""

    def __init__(self) -> None:
        super().__init__(reply)
        self.times: Counter[int] = Counter()

    async def complete(self, call: ModelCall) -> Completion:
        self.times[call.seed] += 1
        return await super().complete(call)


async def test_a_parent_is_brought_back_without_asking_the_model_or_running_a_child_again():
    """Killed while its children, on another worker, have ended but the last."""
    client = Counting()
    hold = asyncio.Event()
    played: Counter[int] = Counter()

    async def child(arena: Arena) -> str:
        run = current_run()
        assert run is not None
        number = int(run.request.id[-1])
        played[number] += 1
        if number == 2:
            await hold.wait()
        return (await arena.call_model(f"child {number}", role_id="A")).text

    async def parent(arena: Arena) -> list[str]:
        said = [(await arena.call_model(f"question {i}", role_id="A")).text for i in range(3)]
        judged = await arena.call_model("and?")
        results = await arena.generate_rollouts([EpisodeRequest("child", [*said, judged.text])] * 3)
        last = await arena.call_model("so?", role_id="A")
        return [*said, judged.text, last.text, *(r.rollout.extras["result"] for r in results)]

    pump = Pump(1, client, parent=parent, child=child)
    pump.scheduler.submit([request("parent")])
    for _ in range(10):
        await pump.turn()
        if pump.scheduler.in_flight > 1 and "w1" not in pump.workers:
            pump.start("w1")  # the parent is on w0; its children go to either
    assert pump.scheduler.in_flight == 2  # the parent, and the child that is held
    where = {request.id: state for request, state in pump.scheduler.unfinished()}
    victim = "w0" if "w0" in where["b000000.0"] else "w1"
    pump.kill(victim)
    pump.start("w2")
    for _ in range(5):
        await pump.turn()
    hold.set()
    (tree,) = await pump.run()
    assert tree.rollout.error is None
    assert tree.rollout.extras["result"][3:] == ["re: and?", "re: so?", *(f"re: child {i}" for i in range(3))]
    assert [step.index for step in tree.rollout.steps] == [0, 1, 2, 4]
    assert (played[0], played[1]) == (1, 1)
    assert set(client.times.values()) == {1}
    assert pump.scheduler.replayed >= 1


async def test_a_parent_that_asks_for_other_children_when_it_is_played_again_fails_and_says_so():
    asked = iter(["apples", "pears"])

    async def fickle(arena: Arena) -> None:
        await arena.generate_rollouts([EpisodeRequest("stuck", next(asked))])

    async def stuck(arena: Arena) -> None:
        await asyncio.Event().wait()

    pump = Pump(2, fickle=fickle, stuck=stuck)
    pump.scheduler.submit([request("fickle")])
    for _ in range(5):
        await pump.turn()
    pump.kill("w0")
    (tree,) = await pump.run()
    assert tree.children == []
    error = tree.rollout.error or ""
    assert "doesn't ask for the children it had asked for" in error
    assert '"pears"' in error
    assert '"apples"' in error


async def test_a_call_by_a_task_of_no_episode_is_passed_on():
    client = MockInferenceClient(reply)
    worker = EpisodeWorker(arena_of(), client, client, Reports())
    message = Message(role="user", content="hello")
    call = ModelCall((message,), "A", temperature=1.0, max_tokens=None, seed=0)
    assert (await worker.complete(call)).text == "re: hello"


def test_a_description_tells_what_is_asked_for_apart():
    requests = [EpisodeRequest("x", artifact, id=f"r/0/{i}") for i, artifact in enumerate([1, "a"])]
    assert description(requests) == description([replace(one, id="other") for one in requests])
    others = [
        [requests[0]],
        requests[::-1],
        [replace(requests[0], artifact=2), requests[1]],
        [replace(requests[0], is_trainable=False), requests[1]],
        [replace(requests[0], meta={"a": 1}), requests[1]],
    ]
    assert len({description(each) for each in [requests, *others]}) == 6
    assert "<object>" in description([EpisodeRequest("x", object())])
    long = [EpisodeRequest("x", "a" * 10_000), EpisodeRequest("x", "b")]
    assert len(description(long)) < 500
    assert description(long) != description([long[0], EpisodeRequest("x", "c")])


async def test_an_episode_that_cancels_itself_is_reported():
    async def stop(arena: Arena) -> None:
        raise asyncio.CancelledError

    (tree,) = await Pump(1, stop=stop).run(request("stop"))
    assert "CancelledError" in (tree.rollout.error or "")


async def test_an_old_attempt_does_not_speak_for_the_new_one():
    """A worker that was given up by mistake plays on, and is then given the same request again."""
    release = asyncio.Event()
    entered = 0

    async def parent(arena: Arena) -> None:
        nonlocal entered
        entered += 1
        if entered == 1:
            await release.wait()
        await arena.generate_rollouts([EpisodeRequest("node", [])])

    reports = Reports()
    client = MockInferenceClient(reply)
    worker = EpisodeWorker(arena_of(parent=parent), client, client, reports)
    worker.accept(Orders(0, [Assignment(request("parent"), 1)], afresh=True))
    await asyncio.sleep(0)
    worker.accept(Orders(0, [Assignment(request("parent"), 2)], number=1))
    release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert sorted(spawn.attempt for report in reports for spawn in report.spawned) == [1, 2]
    worker.accept(Orders(0, deliveries=[Delivery("b000000.0", 2, 0, [])], number=2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [finished.attempt for report in reports for finished in report.finished] == [2]
    worker.close()
    await asyncio.sleep(0)


async def test_orders_about_what_is_not_there_are_ignored():
    client = MockInferenceClient(reply)
    worker = EpisodeWorker(arena_of(), client, client, Reports())
    worker.accept(Orders(5, deliveries=[Delivery("gone", 1, 0, [])], cancelled=[("gone", 1)], afresh=True))
    assert worker.get_policy_version() == 5


async def test_a_worker_starts_no_trees_of_its_own():
    client = MockInferenceClient(reply)
    arena = arena_of()
    EpisodeWorker(arena, client, client, Reports())
    with pytest.raises(ClusterError, match="starts none of its own"):
        await arena.run_episode("node", [])


async def test_judges_calls_go_to_the_judge():
    async def judged(arena: Arena) -> str:
        return (await arena.call_model("who won?")).text

    policy, judge = MockInferenceClient(reply), MockInferenceClient(lambda messages: "A")
    reports = Reports()
    worker = EpisodeWorker(arena_of(judged=judged), policy, judge, reports)
    worker.accept(Orders(0, [Assignment(request("judged"), 1)], afresh=True))
    for _ in range(10):
        await asyncio.sleep(0)
    assert reports[0].finished[0].rollout.extras == {"result": "A"}
    assert (policy.calls, len(judge.calls)) == ([], 1)


async def test_what_cannot_be_sent_is_a_failure_of_its_episode_alone():
    class Unsendable:
        pass

    async def odd(arena: Arena) -> object:
        return Unsendable()

    async def parent(arena: Arena) -> str:
        with pytest.raises(EpisodeError, match="children of episode r2 can't be sent"):
            await arena.run_episode("node", Unsendable())
        return "went on"

    reports = Reports()

    async def send(report: Report) -> None:
        things = [f.rollout.extras.get("result") for f in report.finished]
        things += [child.artifact for spawn in report.spawned for child in spawn.requests]
        if any(isinstance(thing, Unsendable) for thing in things):
            raise TypeError("cannot serialize Unsendable")
        await reports(report)

    client = MockInferenceClient(reply)
    worker = EpisodeWorker(arena_of(odd=odd, parent=parent), client, client, send)
    sent = [request("odd", name="r0"), request("node", [], name="r1"), request("parent", name="r2")]
    worker.accept(Orders(0, [Assignment(one, 1) for one in sent], afresh=True))
    for _ in range(20):
        await asyncio.sleep(0)
    rollouts = {end.rollout.id: end.rollout for report in reports for end in report.finished}
    assert "keep its extras, meta and info plain: cannot serialize Unsendable" in (rollouts["r0"].error or "")
    assert rollouts["r1"].error is None
    assert rollouts["r2"].extras == {"result": "went on"}


async def test_an_episode_on_a_worker_is_told_that_stores_are_elsewhere():
    class AddingEpisode(Episode):
        async def rollout(self, arena, artifact, state):
            arena.stores["topics"].add(Artifact("x", "y"))
            return state

    arena = Arena()
    arena.add_store("topics")
    arena.add_episode("adding", AddingEpisode())
    reports = Reports()
    client = MockInferenceClient(lambda messages: "")
    EpisodeWorker(arena, client, client, reports).accept(
        Orders(0, [Assignment(EpisodeRequest("adding", id="a"), 1)], afresh=True)
    )
    while not reports:
        await asyncio.sleep(0)
    assert "store 'topics' stays with the arena" in reports[0].finished[0].rollout.error
