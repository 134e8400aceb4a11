"""The scheduler by itself: who runs what, in which order, and what happens when workers come and go."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from selfplay_ray.errors import ClusterError
from selfplay_ray.scheduling.messages import Answer, Assignment, Delivery, Finished, Orders, Report, Spawn
from selfplay_ray.scheduling.scheduler import ENOUGH_KNOWN, LEAST_PATIENCE, TOLERATED_LOSSES, Scheduler
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout


@pytest.fixture
def children_go_abroad(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the worker with the least to do, though that be another than their parent's."""
    monkeypatch.setattr(f"{Scheduler.__module__}.MORE_AT_HOME", -1)


abroad = pytest.mark.usefixtures("children_go_abroad")


def requests(*ids: str) -> list[EpisodeRequest]:
    return [EpisodeRequest("x", id=name) for name in ids]


def scheduler_of(*workers: str) -> Scheduler:
    scheduler = Scheduler()
    for worker in workers:
        scheduler.add_worker(worker)
    return scheduler


def assigned(orders: dict[str, Orders]) -> dict[str, dict[str, int]]:
    """{worker: {request id: attempt}}, in the order of the assignments."""
    return {
        worker: {a.request.id: a.attempt for a in order.assignments}
        for worker, order in orders.items()
        if order.assignments
    }


def finished(name: str, attempt: int) -> Report:
    return Report(finished=[Finished(Rollout(name, "x"), attempt)])


def spawned(parent: str, attempt: int, *children: str, call: int = 0) -> Report:
    return Report(spawned=[Spawn(parent, attempt, call, requests(*children))])


def ids(tree: GenerateResult) -> list[str]:
    return [rollout.id for rollout in tree.all_rollouts()]


def test_requests_go_to_the_least_loaded_worker_many_in_one_message():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a", "b", "c", "d"))
    orders = scheduler.take_orders(policy_version=7)
    assert [order.policy_version for order in orders.values()] == [7, 7]
    on = assigned(orders)
    assert {worker: list(names) for worker, names in on.items()} == {"w0": ["a", "c"], "w1": ["b", "d"]}
    scheduler.handle("w1", finished("b", on["w1"]["b"]))
    scheduler.handle("w1", finished("d", on["w1"]["d"]))
    scheduler.submit(requests("e"))
    assert list(assigned(scheduler.take_orders(7))) == ["w1"]


def test_there_are_no_orders_without_anything_to_do():
    scheduler = scheduler_of("w0")
    assert scheduler.take_orders(0)["w0"].afresh
    assert scheduler.take_orders(0) == {}
    scheduler.submit(requests("a"))
    scheduler.take_orders(0)
    assert scheduler.take_orders(1) == {}


def test_requests_wait_for_the_first_worker():
    scheduler = Scheduler()
    scheduler.submit(requests("a"))
    assert scheduler.take_orders(0) == {}
    assert [state for _, state in scheduler.unfinished()] == ["queued"]
    scheduler.add_worker("late")
    orders = scheduler.take_orders(0)
    assert list(assigned(orders)["late"]) == ["a"]
    assert orders["late"].afresh  # also where it was there before, and plays yet what was asked of it then
    scheduler.submit(requests("b"))
    assert not scheduler.take_orders(0)["late"].afresh


def test_deeper_requests_go_first():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.submit(requests("b"))
    scheduler.handle("w0", spawned("a", attempt, "a/0/0", "a/0/1"))
    assert list(assigned(scheduler.take_orders(0))["w0"]) == ["a/0/0", "a/0/1", "b"]


def test_a_waiting_parent_holds_nothing():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    assert scheduler.running("w0") == 1
    scheduler.handle("w0", spawned("a", attempt, "a/0/0"))
    assert scheduler.running("w0") == 0
    assert [state for _, state in scheduler.unfinished()] == ["on w0, waiting for children", "queued"]


@abroad
def test_children_come_back_together_and_in_order():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", attempt, "a/0/0", "a/0/1"))
    on = assigned(scheduler.take_orders(0))
    assert {worker: list(names) for worker, names in on.items()} == {"w0": ["a/0/0"], "w1": ["a/0/1"]}
    scheduler.handle("w1", finished("a/0/1", on["w1"]["a/0/1"]))
    assert scheduler.take_orders(0) == {}
    scheduler.handle("w0", finished("a/0/0", on["w0"]["a/0/0"]))
    orders = scheduler.take_orders(0)
    (delivery,) = orders["w0"].deliveries
    assert (delivery.parent, delivery.attempt, delivery.call) == ("a", attempt, 0)
    assert [result.rollout.id for result in delivery.results] == ["a/0/0", "a/0/1"]
    assert scheduler.running("w0") == 1
    scheduler.handle("w0", finished("a", attempt))
    (tree,) = scheduler.take_finished()
    assert ids(tree) == ["a", "a/0/0", "a/0/1"]
    assert scheduler.take_finished() == []
    assert scheduler.in_flight == 0


def test_children_stay_with_their_parent_until_others_have_much_less_to_do():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    children = [f"a/0/{index}" for index in range(8)]
    scheduler.handle("w0", spawned("a", attempt, *children))
    on = assigned(scheduler.take_orders(0))
    assert {worker: list(names) for worker, names in on.items()} == {
        "w0": [children[0], *children[2:6], children[7]],  # MORE_AT_HOME is 3
        "w1": [children[1], children[6]],  # the first, because it had nothing to do
    }


def test_an_empty_call_is_answered_at_once():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", attempt))
    assert scheduler.take_orders(0)["w0"].deliveries == [Delivery("a", attempt, 0, [])]
    assert scheduler.running("w0") == 1


def test_what_the_request_says_is_in_the_result():
    scheduler = scheduler_of("w0")
    scheduler.submit([EpisodeRequest("x", id="a", is_trainable=False, group="g")])
    scheduler.handle("w0", finished("a", assigned(scheduler.take_orders(0))["w0"]["a"]))
    (tree,) = scheduler.take_finished()
    assert (tree.is_trainable, tree.group) == (False, "g")


def test_an_id_twice_is_refused():
    scheduler = scheduler_of("w0")
    with pytest.raises(ClusterError, match="request a is in flight already"):
        scheduler.submit(requests("a", "a"))


def test_what_a_lost_worker_ran_goes_elsewhere_and_its_late_report_counts_for_nothing():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.remove_worker("w0")
    second = assigned(scheduler.take_orders(0))["w1"]["a"]
    assert second != first
    assert scheduler.handle("w0", finished("a", first)) == []
    assert scheduler.handle("w1", finished("a", first)) == []
    assert scheduler.take_finished() == []
    counted = scheduler.handle("w1", finished("a", second))
    assert [rollout.id for rollout in counted] == ["a"]
    assert scheduler.handle("w1", finished("a", second)) == []  # the same report again
    assert len(scheduler.take_finished()) == 1


@abroad
def test_what_a_lost_worker_played_goes_on_with_the_children_it_had():
    """One has finished, one is being played elsewhere, one was lost with it; none is run twice to its end."""
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    children = ("a/0/0", "a/0/1", "a/0/2")
    answers = [Answer("asked", "said")]
    scheduler.handle("w0", Report(spawned=[Spawn("a", first, 0, requests(*children), "three", answers)]))
    on = assigned(scheduler.take_orders(0))
    assert {worker: list(names) for worker, names in on.items()} == {
        "w0": ["a/0/0", "a/0/2"],
        "w1": ["a/0/1"],
    }
    scheduler.handle("w0", finished("a/0/0", on["w0"]["a/0/0"]))
    scheduler.remove_worker("w0")
    orders = scheduler.take_orders(0)["w1"]
    assert orders.cancelled == []
    assert [(a.request.id, a.answers) for a in orders.assignments] == [("a/0/2", []), ("a", answers)]
    again = {a.request.id: a.attempt for a in orders.assignments}
    assert scheduler.running("w1") == 3
    scheduler.handle("w1", Report(spawned=[Spawn("a", again["a"], 0, requests(*children), "three")]))
    assert scheduler.running("w1") == 2
    scheduler.handle("w1", finished("a/0/1", on["w1"]["a/0/1"]))
    scheduler.handle("w1", finished("a/0/2", again["a/0/2"]))
    (delivery,) = scheduler.take_orders(0)["w1"].deliveries
    assert delivery.attempt == again["a"]
    assert [result.rollout.id for result in delivery.results] == list(children)
    scheduler.handle("w1", finished("a", again["a"]))
    assert [ids(tree) for tree in scheduler.take_finished()] == [["a", *children]]
    assert (scheduler.running("w1"), scheduler.in_flight, scheduler.replayed) == (0, 0, 2)


def lose_workers_over(scheduler: Scheduler, name: str) -> list[Rollout]:
    """One worker after the other is lost while it plays ``name``; what is given up with the last."""
    lost = []
    for number in range(TOLERATED_LOSSES):
        assert lost == []
        scheduler.add_worker(f"mortal-{number}")
        assert name in assigned(scheduler.take_orders(0))[f"mortal-{number}"]
        lost = scheduler.remove_worker(f"mortal-{number}")
    return lost


@abroad
def test_a_child_that_one_worker_after_another_is_lost_with_has_failed_and_its_parent_goes_on():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a", "b"))
    on = assigned(scheduler.take_orders(0))["w0"]
    scheduler.handle("w0", spawned("a", on["a"], "a/0/0"))  # and w0 is busy with b
    (failed,) = lose_workers_over(scheduler, "a/0/0")
    assert failed.error is not None
    assert f"{TOLERATED_LOSSES} workers were lost while they played it" in failed.error
    (delivery,) = scheduler.take_orders(0)["w0"].deliveries
    assert [result.rollout for result in delivery.results] == [failed]
    scheduler.handle("w0", finished("a", on["a"]))
    assert [ids(tree) for tree in scheduler.take_finished()] == [["a", "a/0/0"]]


def test_a_root_that_one_worker_after_another_is_lost_with_has_failed_and_its_children_are_called_off():
    scheduler = Scheduler()
    scheduler.submit(requests("a"))
    scheduler.add_worker("first")
    attempt = assigned(scheduler.take_orders(0))["first"]["a"]
    scheduler.handle("first", spawned("a", attempt, "a/0/0"))
    scheduler.remove_worker("first")  # it waited: no loss of one that played
    (failed,) = lose_workers_over(scheduler, "a")
    assert [(tree.rollout, tree.children) for tree in scheduler.take_finished()] == [(failed, [])]
    assert scheduler.in_flight == 0


def test_a_call_that_is_complete_is_answered_at_once_when_it_comes_again():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", first, "a/0/0"))
    scheduler.handle("w0", finished("a/0/0", assigned(scheduler.take_orders(0))["w0"]["a/0/0"]))
    scheduler.remove_worker("w0")  # with the answer on its way
    again = assigned(scheduler.take_orders(0))["w1"]["a"]
    scheduler.handle("w1", spawned("a", again, "a/0/0"))
    orders = scheduler.take_orders(0)["w1"]
    assert orders.assignments == []
    assert [result.rollout.id for result in orders.deliveries[0].results] == ["a/0/0"]
    assert scheduler.running("w1") == 1


def test_who_asks_for_other_children_than_before_is_told_so_and_both_are_shown():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", Report(spawned=[Spawn("a", first, 0, requests("a/0/0"), "one apple")]))
    scheduler.remove_worker("w0")
    on_w1 = assigned(scheduler.take_orders(0))["w1"]
    child, again = on_w1["a/0/0"], on_w1["a"]
    scheduler.handle("w1", Report(spawned=[Spawn("a", again, 0, requests("a/0/0"), "one pear")]))
    (delivery,) = scheduler.take_orders(0)["w1"].deliveries
    assert "now for one pear, before for one apple" in delivery.error
    assert scheduler.running("w1") == 2
    scheduler.handle("w1", finished("a", again))  # it has failed of it
    assert scheduler.take_orders(0)["w1"].cancelled == [("a/0/0", child)]
    assert [ids(tree) for tree in scheduler.take_finished()] == [["a"]]
    assert (scheduler.running("w1"), scheduler.in_flight) == (0, 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def known_scheduler(clock: Clock, seconds: float) -> Scheduler:
    """Of two workers, that has seen enough episodes, which took ``seconds`` each."""
    scheduler = Scheduler(clock)
    for worker in ("w0", "w1"):
        scheduler.add_worker(worker)
    for number in range(ENOUGH_KNOWN):
        scheduler.submit(requests(f"known{number}"))
        ((worker, attempts),) = assigned(scheduler.take_orders(0)).items()
        clock.now += seconds
        scheduler.handle(worker, finished(f"known{number}", attempts[f"known{number}"]))
    scheduler.take_finished()
    return scheduler


@pytest.mark.parametrize(("seconds", "limit"), [(20.0, 200.0), (0.5, 60.0)])
def test_what_takes_far_too_long_is_tried_elsewhere_and_whoever_is_first_is_it(seconds, limit):
    clock = Clock()
    scheduler = known_scheduler(clock, seconds)
    scheduler.submit(requests("slow"))
    first = assigned(scheduler.take_orders(0))["w0"]["slow"]
    clock.now += limit
    scheduler.try_stragglers_elsewhere()
    assert scheduler.take_orders(0) == {}
    clock.now += 1
    for _ in range(2):
        scheduler.try_stragglers_elsewhere()
    second = assigned(scheduler.take_orders(0))["w1"]["slow"]
    assert [state for _, state in scheduler.unfinished()] == ["on w0; on w1"]
    clock.now += 10 * limit
    scheduler.try_stragglers_elsewhere()
    assert scheduler.take_orders(0) == {}  # two are enough
    assert [rollout.id for rollout in scheduler.handle("w0", finished("slow", first))] == ["slow"]
    assert scheduler.take_orders(0)["w1"].cancelled == [("slow", second)]
    assert scheduler.handle("w1", finished("slow", second)) == []
    assert len(scheduler.take_finished()) == 1
    assert (scheduler.running("w0"), scheduler.running("w1"), scheduler.overdue) == (0, 0, 1)


def test_waiting_for_children_is_no_reason_to_be_tried_elsewhere():
    clock = Clock()
    scheduler = known_scheduler(clock, 1.0)
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    clock.now += 50
    scheduler.handle("w0", spawned("a", attempt, "a/0/0"))
    child = assigned(scheduler.take_orders(0))["w0"]["a/0/0"]
    clock.now += 59
    scheduler.try_stragglers_elsewhere()
    assert scheduler.take_orders(0) == {}
    scheduler.handle("w0", finished("a/0/0", child))
    scheduler.take_orders(0)
    clock.now += 9
    scheduler.try_stragglers_elsewhere()
    assert scheduler.take_orders(0) == {}
    clock.now += 2  # 50 and 11 of its own
    scheduler.try_stragglers_elsewhere()
    assert assigned(scheduler.take_orders(0)) == {"w1": {"a": child + 1}}


def test_both_attempts_at_a_straggler_get_the_children_that_are_run_once():
    clock = Clock()
    scheduler = known_scheduler(clock, 1.0)
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    clock.now += 61
    scheduler.try_stragglers_elsewhere()
    second = assigned(scheduler.take_orders(0))["w1"]["a"]
    scheduler.handle("w1", spawned("a", second, "a/0/0"))
    scheduler.handle("w0", spawned("a", first, "a/0/0"))
    ((worker, attempts),) = assigned(scheduler.take_orders(0)).items()
    scheduler.handle(worker, finished("a/0/0", attempts["a/0/0"]))
    orders = scheduler.take_orders(0)
    assert {worker: [d.attempt for d in order.deliveries] for worker, order in orders.items()} == {
        "w0": [first],
        "w1": [second],
    }
    assert (scheduler.running("w0"), scheduler.running("w1")) == (1, 1)
    scheduler.remove_worker("w0")
    assert scheduler.take_orders(0) == {}  # the other is still at it
    scheduler.handle("w1", finished("a", second))
    assert [ids(tree) for tree in scheduler.take_finished()] == [["a", "a/0/0"]]


@abroad
def test_a_child_on_a_lost_worker_runs_again_without_its_parent():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", attempt, "a/0/0", "a/0/1"))
    on = assigned(scheduler.take_orders(0))
    scheduler.handle("w0", finished("a/0/0", on["w0"]["a/0/0"]))
    scheduler.remove_worker("w1")
    again = assigned(scheduler.take_orders(0))
    assert list(again["w0"]) == ["a/0/1"]
    scheduler.handle("w0", finished("a/0/1", again["w0"]["a/0/1"]))
    assert [r.rollout.id for r in scheduler.take_orders(0)["w0"].deliveries[0].results] == ["a/0/0", "a/0/1"]


def test_a_report_that_comes_twice_spawns_once():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    for _ in range(2):
        scheduler.handle("w0", spawned("a", attempt, "a/0/0"))
    child = assigned(scheduler.take_orders(0))["w0"]["a/0/0"]
    scheduler.handle("w0", finished("a/0/0", child))
    scheduler.handle("w0", spawned("a", attempt, "a/0/0"))
    orders = scheduler.take_orders(0)["w0"]
    assert (len(orders.deliveries), orders.assignments) == (1, [])
    assert scheduler.running("w0") == 1


@abroad
def test_a_whole_subtree_is_called_off_and_only_what_ran_is_taken_off_the_load():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    root = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", root, "a/0/0"))
    middle = assigned(scheduler.take_orders(0))["w0"]["a/0/0"]
    scheduler.handle("w0", spawned("a/0/0", middle, "a/0/0/0/0", "a/0/0/0/1"))
    leaves = assigned(scheduler.take_orders(0))
    assert (scheduler.running("w0"), scheduler.running("w1")) == (1, 1)  # a leaf each; two wait
    scheduler.handle("w0", finished("a", root))
    orders = scheduler.take_orders(0)
    assert orders["w0"].cancelled == [("a/0/0/0/0", leaves["w0"]["a/0/0/0/0"]), ("a/0/0", middle)]
    assert orders["w1"].cancelled == [("a/0/0/0/1", leaves["w1"]["a/0/0/0/1"])]
    assert (scheduler.running("w0"), scheduler.running("w1"), scheduler.in_flight) == (0, 0, 0)


def test_a_worker_that_comes_back_comes_back_empty():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    first = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.add_worker("w0")
    second = assigned(scheduler.take_orders(0))["w0"]["a"]
    assert second != first
    assert scheduler.running("w0") == 1


@abroad
def test_a_parent_that_ends_while_children_run_calls_them_off():
    scheduler = scheduler_of("w0", "w1")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    scheduler.handle("w0", spawned("a", attempt, "a/0/0", call=0))
    done = assigned(scheduler.take_orders(0))["w0"]["a/0/0"]
    scheduler.handle("w0", spawned("a", attempt, "a/1/0", "a/1/1", call=1))
    on = assigned(scheduler.take_orders(0))
    scheduler.handle("w0", finished("a/0/0", done))
    scheduler.handle("w0", finished("a", attempt))
    (tree,) = scheduler.take_finished()
    assert ids(tree) == ["a", "a/0/0"]  # the call that was answered stays, the other is dropped whole
    cancelled = {name for order in scheduler.take_orders(0).values() for name, _ in order.cancelled}
    assert cancelled == {"a/1/0", "a/1/1"}
    assert (scheduler.in_flight, scheduler.running("w0"), scheduler.running("w1")) == (0, 0, 0)
    assert scheduler.handle("w1", finished("a/1/0", on["w1"]["a/1/0"])) == []


def test_a_parent_that_spawns_and_ends_in_one_report():
    scheduler = scheduler_of("w0")
    scheduler.submit(requests("a"))
    attempt = assigned(scheduler.take_orders(0))["w0"]["a"]
    report = spawned("a", attempt, "a/0/0")
    report.finished.append(Finished(Rollout("a", "x"), attempt))
    scheduler.handle("w0", report)
    assert [ids(tree) for tree in scheduler.take_finished()] == [["a"]]
    assert scheduler.take_orders(0) == {}  # what was never sent needn't be called off
    assert (scheduler.in_flight, scheduler.running("w0")) == (0, 0)


# Whatever happens


@dataclass
class Playing:
    """An episode on a simulated worker."""

    request: EpisodeRequest
    attempt: int
    calls_made: int = 0
    outstanding: set[int] = field(default_factory=set)


def script_of(request_id: str) -> list[int]:
    """How many children each of its calls asks for; the same whenever it is asked."""
    rng = random.Random(request_id)
    depth = request_id.count("/") // 2
    return [rng.choice([0, 1, 1, 2, 3]) for _ in range(rng.choice([0, 1, 1, 2]))] if depth < 3 else []


WORKERS = ["w0", "w1", "w2"]


class Storm(RuleBasedStateMachine):
    """Random trees on simulated workers that get lost and return; reports that come late or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("selfplay_ray.scheduling.scheduler.ENOUGH_KNOWN", 1)
        self.patch.setattr("selfplay_ray.scheduling.scheduler.TOLERATED_LOSSES", 1_000_000)
        self.workers: dict[str, dict[tuple[str, int], Playing]] = {}  # by request id and attempt
        self.zombies: list[tuple[str, Playing]] = []  # still at it on a worker that was given up
        self.sent: list[tuple[str, Report]] = []
        self.given_up: set[tuple[str, int]] = set()
        self.counted: set[str] = set()
        self.clock = Clock()
        self.scheduler = Scheduler(self.clock)
        self.roots = 0
        self.trees: dict[str, GenerateResult] = {}

    # What can happen

    @initialize(more=st.sampled_from([-1, 0, 3]))
    def children_stay_at_home_or_not(self, more):
        self.patch.setattr("selfplay_ray.scheduling.scheduler.MORE_AT_HOME", more)

    @rule(count=st.integers(1, 3))
    def submit(self, count):
        self.scheduler.submit(requests(*(f"r{self.roots + i}" for i in range(count))))
        self.roots += count

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_is_ready(self, worker):
        self.forget(worker)
        self.scheduler.add_worker(worker)
        self.workers[worker] = {}

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_is_lost(self, worker):
        self.forget(worker)
        self.scheduler.remove_worker(worker)

    @rule()
    def time_passes(self):
        """Longer than anybody is waited for, once enough is known."""
        self.clock.now += 10 * LEAST_PATIENCE
        self.scheduler.try_stragglers_elsewhere()

    @rule()
    def orders_arrive(self):
        orders = self.scheduler.take_orders(0)
        for worker, order in orders.items():
            for name, attempt in order.cancelled:
                assert (name, attempt) in self.given_up
                self.pop(worker, name, attempt)
        for worker, order in orders.items():
            for delivery in order.deliveries:
                self.deliver(worker, delivery)
            for assignment in order.assignments:
                self.assign(worker, assignment)
        for worker, playing in self.workers.items():  # a waiting parent is no load
            assert self.scheduler.running(worker) == sum(not e.outstanding for e in playing.values())

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), count=st.integers(1, 4))
    def a_worker_reports(self, data, count):
        worker = data.draw(st.sampled_from([name for name, playing in self.workers.items() if playing]))
        report = Report()
        for _ in range(count):
            if playing := list(self.workers[worker]):
                self.act(worker, data.draw(st.sampled_from(playing)), report, data.draw(st.integers(0, 9)))
        self.send(worker, report)

    @precondition(lambda self: any(self.workers.values()))
    @rule(choices=st.lists(st.integers(0, 9), min_size=1, max_size=20))
    def all_workers_report(self, choices):
        for worker, playing in self.workers.items():
            report = Report()
            for which, choice in zip(list(playing), choices, strict=False):
                self.act(worker, which, report, choice)
            self.send(worker, report)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_report_comes_again(self, data):
        worker, report = data.draw(st.sampled_from(self.sent))
        before = len(self.trees)
        assert self.scheduler.handle(worker, report) == []
        self.collect()
        assert len(self.trees) == before

    @precondition(lambda self: self.zombies)
    @rule(data=st.data())
    def a_given_up_episode_reports(self, data):
        worker, zombie = data.draw(st.sampled_from(self.zombies))
        name, attempt = zombie.request.id, zombie.attempt
        assert self.scheduler.handle(worker, spawned(name, attempt, f"{name}/7/0", call=7)) == []
        assert self.scheduler.handle(worker, finished(name, attempt)) == []

    # What must hold in the end

    def teardown(self):
        """Let everything end: every root, once, and nothing stays behind."""
        self.patch.undo()
        if not self.workers:
            self.a_worker_is_ready("w0")
        for _ in range(200):
            if not self.scheduler.in_flight:
                break
            self.orders_arrive()
            for worker, playing in self.workers.items():
                for which in list(playing):
                    report = Report()
                    self.act(worker, which, report, choice=1)
                    self.send(worker, report)
        self.orders_arrive()
        assert self.scheduler.in_flight == 0, list(self.scheduler.unfinished())
        assert set(self.trees) == {f"r{i}" for i in range(self.roots)}
        assert all(self.scheduler.running(worker) == 0 for worker in self.workers)
        assert not any(self.workers.values())
        assert self.scheduler.take_orders(0) == {}
        assert not any(self.scheduler._orders(worker) for worker in self.scheduler.workers)
        assert self.scheduler._queue == []

    # How

    def forget(self, worker):
        for episode in self.workers.pop(worker, {}).values():
            self.zombies.append((worker, episode))
            self.given_up.add((episode.request.id, episode.attempt))

    def give_up(self, name, attempt):
        """``attempt`` has ended: nobody waits for another of it, nor for what is still below it."""
        for playing in self.workers.values():
            for other in playing:
                if other[0].startswith(f"{name}/") or (other[0] == name and other[1] != attempt):
                    self.given_up.add(other)

    def pop(self, worker: str, name: str, attempt: int) -> None:
        self.workers[worker].pop((name, attempt), None)

    def assign(self, worker: str, assignment: Assignment):
        name = assignment.request.id
        others = sum(other == name for playing in self.workers.values() for other, _ in playing)
        assert others <= (1 if self.scheduler.overdue else 0), "runs already"
        assert (name, assignment.attempt) not in self.given_up
        self.workers[worker][name, assignment.attempt] = Playing(assignment.request, assignment.attempt)

    def deliver(self, worker: str, delivery: Delivery):
        episode = self.workers[worker].get((delivery.parent, delivery.attempt))
        if episode is None:
            return  # it failed while they were on their way
        assert delivery.call in episode.outstanding or delivery.results == []  # an empty call, reported twice
        episode.outstanding.discard(delivery.call)
        width = script_of(delivery.parent)[delivery.call]
        assert [r.rollout.id for r in delivery.results] == [
            f"{delivery.parent}/{delivery.call}/{i}" for i in range(width)
        ]

    def act(self, worker: str, which: tuple[str, int], report: Report, choice: int):
        """The episode makes its next call (also while it waits for one, sometimes), ends, or fails."""
        episode, name = self.workers[worker][which], which[0]
        script = script_of(name)
        more = episode.calls_made < len(script)
        if choice == 0:
            self.end(worker, episode, report, error="it raised")
        elif more and (choice > 6 or not episode.outstanding):
            call = episode.calls_made
            episode.calls_made += 1
            episode.outstanding.add(call)
            children = requests(*(f"{name}/{call}/{i}" for i in range(script[call])))
            report.spawned.append(Spawn(name, episode.attempt, call, children))
        elif not more and not episode.outstanding:
            self.end(worker, episode, report, error=None)

    def end(self, worker: str, episode: Playing, report: Report, error: str | None):
        name = episode.request.id
        if (name, episode.attempt) not in self.given_up:
            self.give_up(name, episode.attempt)
        del self.workers[worker][name, episode.attempt]
        rollout = Rollout(name, "x", meta={"attempt": episode.attempt}, error=error)
        report.finished.append(Finished(rollout, episode.attempt))

    def send(self, worker: str, report: Report):
        counted = [rollout.id for rollout in self.scheduler.handle(worker, report)]
        assert counted == [
            end.rollout.id for end in report.finished if (end.rollout.id, end.attempt) not in self.given_up
        ]
        assert not self.counted.intersection(counted), "run twice to its end"
        self.counted.update(counted)
        self.sent.append((worker, report))
        self.collect()

    def collect(self):
        for tree in self.scheduler.take_finished():
            assert tree.rollout.id not in self.trees
            self.trees[tree.rollout.id] = tree
            for result in tree.all_results():
                self.check(result)

    def check(self, result: GenerateResult):
        rollout = result.rollout
        assert (rollout.id, rollout.meta["attempt"]) not in self.given_up
        children = [child.rollout.id for child in result.children]
        asked = [
            f"{rollout.id}/{c}/{i}" for c, width in enumerate(script_of(rollout.id)) for i in range(width)
        ]
        if rollout.error is None:
            assert children == asked
        else:
            assert set(children) <= set(asked)
            assert children == sorted(children)


Storm.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestStorm = Storm.TestCase
