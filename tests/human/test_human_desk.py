"""The desk: what waits, what is answered, what nobody answered in time. The clock is set by hand."""

from __future__ import annotations

from selfplay_ray.human.desk import Desk, Outcome


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_question_is_answered_once():
    desk = Desk(60)
    assert desk.post("k", "How good?") == Outcome("waiting")
    (question,) = desk.waiting()
    assert (question.number, question.text) == (1, "How good?")
    assert desk.answer(1, "7")
    assert not desk.answer(1, "3")
    assert desk.outcome("k") == Outcome("answered", "7")
    assert desk.waiting() == []


def test_what_was_never_asked_has_no_outcome_and_no_answer():
    desk = Desk(60)
    assert desk.outcome("k") is None
    assert not desk.answer(1, "7")


def test_the_same_question_from_another_worker_is_the_same_question():
    desk = Desk(60)
    desk.post("k", "How good?")
    assert desk.post("k", "How good?") == Outcome("waiting")
    assert len(desk.waiting()) == 1
    desk.answer(1, "7")
    assert desk.post("k", "How good?") == Outcome("answered", "7")


def test_nobody_answered_in_time_is_an_abstention():
    clock = Clock()
    desk = Desk(60, clock=clock)
    desk.post("a", "?")
    clock.now += 30
    desk.post("b", "?")
    assert [question.seconds_left for question in desk.waiting()] == [30, 60]
    clock.now += 30
    assert (desk.outcome("a"), desk.outcome("b")) == (Outcome("abstained"), Outcome("waiting"))
    assert not desk.answer(1, "7")  # too late
    assert desk.outcome("a") == Outcome("abstained")
    assert desk.answer(2, "7")


def test_one_by_one_the_time_begins_when_a_question_is_read_out():
    clock = Clock()
    desk = Desk(60, one_by_one=True, clock=clock)
    desk.post("a", "first")
    desk.post("b", "second")
    clock.now += 1000
    assert [question.seconds_left for question in desk.waiting()] == [None, None]
    question = desk.take()
    assert (question.number, question.seconds_left) == (1, 60)
    clock.now += 59
    assert desk.take().seconds_left == 1
    clock.now += 1
    assert desk.take().text == "second"  # its own 60 seconds begin
    assert (desk.outcome("a"), desk.outcome("b")) == (Outcome("abstained"), Outcome("waiting"))
    desk.answer(2, "5")
    assert desk.take() is None


def test_at_a_closed_desk_everything_is_an_abstention():
    desk = Desk(60, one_by_one=True)
    desk.post("a", "?")
    desk.close()
    assert desk.outcome("a") == Outcome("abstained")
    assert desk.post("b", "?") == Outcome("abstained")
    assert desk.take() is None
