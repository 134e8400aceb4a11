"""Orders and reports between the arena and a worker, whatever overtakes, is lost, or comes twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_ray.scheduling.exchange import ArenaSide, WorkerSide
from selfplay_ray.scheduling.messages import Finished, Orders, Report
from selfplay_ray.types import Rollout


def ordered(line: ArenaSide, name: str) -> Orders:
    """The arena tells the worker that ``name`` is cancelled."""
    line.orders.cancelled.append((name, 0))
    orders = line.take(policy_version=1)
    assert orders is not None
    return orders


def names(due: list[Orders]) -> list[str]:
    return [name for orders in due for name, _ in orders.cancelled]


def report() -> Report:
    return Report(finished=[Finished(Rollout("a", "x"), 0)])


def test_orders_that_overtake_others_wait_for_them():
    arena, worker = ArenaSide(), WorkerSide()
    first, second, third = (ordered(arena, name) for name in "abc")
    assert names(worker.arrived(third)) == []
    assert names(worker.arrived(first)) == ["a"]
    assert names(worker.arrived(second)) == ["b", "c"]
    assert names(worker.arrived(second)) == []


def test_there_is_nothing_to_take_where_there_is_nothing_to_tell():
    arena = ArenaSide()
    begin = arena.take(1)
    assert begin is not None
    assert begin.afresh  # which is something to tell
    assert arena.take(1) is None
    assert not ordered(arena, "b").afresh
    assert arena.take(1) is None


def test_a_worker_that_begins_afresh_forgets_what_was_on_its_way():
    before, worker = ArenaSide(), WorkerSide()
    first, late = ordered(before, "a"), ordered(before, "late")
    worker.arrived(first)
    after = ArenaSide()
    begin, then = ordered(after, "b"), ordered(after, "c")
    assert names(worker.arrived(then)) == []
    assert names(worker.arrived(begin)) == ["b", "c"]
    assert names(worker.arrived(late)) == []


def test_who_is_told_twice_to_begin_afresh_begins_once():
    """Also when it comes late: what it plays by then stays."""
    before, worker = ArenaSide(), WorkerSide()
    first, second = ordered(before, "a"), ordered(before, "b")
    assert names(worker.arrived(first)) == ["a"]
    assert names(worker.arrived(second)) == ["b"]
    assert names(worker.arrived(first)) == []
    after = ArenaSide()
    assert names(worker.arrived(ordered(after, "c"))) == ["c"]
    assert names(worker.arrived(first)) == []
    assert names(worker.arrived(ordered(after, "d"))) == ["d"]


def test_a_process_that_took_a_workers_place_waits_for_its_beginning():
    arena, worker = ArenaSide(), WorkerSide()
    ordered(arena, "a")  # arrived at the process before
    assert names(worker.arrived(ordered(arena, "b"))) == []
    assert names(worker.arrived(ordered(ArenaSide(), "c"))) == ["c"]


def test_a_report_that_comes_again_is_answered_as_it_was():
    arena, worker = ArenaSide(), WorkerSide()
    worker.arrived(ordered(arena, "a"))
    first = worker.sending(report())
    assert arena.is_new(first)
    answer = ordered(arena, "b")
    arena.answer(first, answer)
    assert not arena.is_new(first)
    assert arena.answer_again(first) is answer
    second = worker.sending(report())
    assert arena.is_new(second)
    arena.answer(second, None)
    assert arena.answer_again(second) is None
    assert arena.answer_again(first) is None  # the worker has had it, or there would be no second


def test_a_report_from_before_the_worker_began_afresh_is_not_taken_in():
    before, worker = ArenaSide(), WorkerSide()
    worker.arrived(ordered(before, "a"))
    late = worker.sending(report())
    after = ArenaSide()
    assert not after.is_new(late)
    worker.arrived(ordered(after, "b"))
    assert not after.is_new(late)
    assert after.answer_again(late) is None
    assert after.is_new(worker.sending(report()))


@settings(max_examples=300)
@given(st.data())
def test_whatever_the_network_does_orders_are_carried_out_once_and_in_order(data: st.DataObject):
    """Some are sent and some are answers; answers may be lost, and reports come again; nothing keeps its place."""
    arena, worker = ArenaSide(), WorkerSide()
    on_its_way: list[Orders] = []
    told, done = 0, []
    waiting: Report | None = None  # for its answer
    worker.arrived(ordered(arena, "begin"))
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["tell", "arrive", "report", "report again", "answer"])):
            case "tell":
                on_its_way.append(ordered(arena, str(told)))
                told += 1
            case "arrive" if on_its_way:
                done += names(worker.arrived(on_its_way.pop(data.draw(st.integers(0, len(on_its_way) - 1)))))
            case "report" if waiting is None:
                waiting = worker.sending(report())
                assert arena.is_new(waiting)
                arena.answer(waiting, ordered(arena, str(told)))
                told += 1
            case "report again" if waiting is not None:
                assert not arena.is_new(waiting)
            case "answer" if waiting is not None:
                answer = arena.answer_again(waiting)
                assert answer is not None
                done += names(worker.arrived(answer))
                waiting = None
        assert done == [str(number) for number in range(len(done))]
    if waiting is not None:
        answer = arena.answer_again(waiting)
        assert answer is not None
        done += names(worker.arrived(answer))
    for orders in reversed(on_its_way):
        done += names(worker.arrived(orders))
    assert done == [str(number) for number in range(told)]
