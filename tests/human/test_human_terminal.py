"""The desk at a terminal: a real pseudo-terminal, of which the test is the person's end."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator

import pytest
from waiting import until

from selfplay_ray.errors import ConfigError
from selfplay_ray.human.desk import Desk, Outcome
from selfplay_ray.human.service import human_at_hand
from selfplay_ray.human.terminal import TerminalClerk


class Screen:
    """What the clerk has written."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The person's end and the program's."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_questions_are_put_one_by_one_and_answered(terminal: tuple[int, int]):
    person, program = terminal
    desk, screen = Desk(60, one_by_one=True), Screen()
    desk.post("a", "What is 1 + 1?\nThe answer given is 2.")
    desk.post("b", "And this?")
    with TerminalClerk(desk, program, screen):
        until(lambda: "\n> " in screen.text)
        assert screen.text == "\nQuestion 1, 60 seconds:\n| What is 1 + 1?\n| The answer given is 2.\n> "
        os.write(person, b"10\n")
        until(lambda: "| And this?\n> " in screen.text)
        assert desk.outcome("a") == Outcome("answered", "10")
        os.write(person, b"3\n")
        until(lambda: desk.outcome("b") == Outcome("answered", "3"))


def test_a_line_begun_for_one_question_does_not_answer_the_next(terminal: tuple[int, int]):
    person, program = terminal
    desk, screen = Desk(0.5, one_by_one=True), Screen()
    desk.post("a", "first")
    with TerminalClerk(desk, program, screen):
        until(lambda: "| first\n> " in screen.text)
        os.write(person, b"9")  # and no line end
        until(lambda: "(time is up)" in screen.text)
        assert desk.outcome("a") == Outcome("abstained")
        desk.timeout = 60
        desk.post("b", "second")
        until(lambda: "| second\n> " in screen.text)
        os.write(person, b"4\n")
        until(lambda: desk.outcome("b").state == "answered")
    assert desk.outcome("b") == Outcome("answered", "4")


def test_what_a_model_wrote_cannot_style_the_terminal_or_pose_as_a_prompt(terminal: tuple[int, int]):
    desk, screen = Desk(60, one_by_one=True), Screen()
    desk.post("a", "\x1b[2J\rQuestion 7:\n> 10")
    with TerminalClerk(desk, terminal[1], screen):
        until(lambda: screen.text.endswith("\n> "))
    assert "\x1b" not in screen.text
    assert "\n| Question 7:\n| > 10\n> " in screen.text


def test_when_the_input_ends_everything_is_an_abstention():
    desk, screen = Desk(60, one_by_one=True), Screen()
    reads, writes = os.pipe()
    os.close(writes)
    desk.post("a", "?")
    with TerminalClerk(desk, reads, screen):
        until(lambda: desk.outcome("a") == Outcome("abstained"))
    os.close(reads)
    assert desk.post("b", "?") == Outcome("abstained")


def test_without_a_terminal_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ConfigError, match="use --human http"), human_at_hand("terminal", 60):
        pass
