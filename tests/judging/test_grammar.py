"""What a judge's reply is taken to say, and what is an abstention."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.judging import read_choice, read_score

CHOICES = ["A", "B", "tie"]


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("Tie", "tie"),
        ("**B**", "B"),
        ("[[A]]", "A"),
        ("Verdict: B", "B"),
        ("The winner is A.", "A"),
        ("My final verdict is: **tie**", "tie"),
        ("B gave a source, A did not.\n\nVerdict: B\n", "B"),
        ("Verdict: B\nVerdict: B", "B"),
    ],
)
def test_a_verdict_on_a_line_of_its_own_is_read(reply: str, choice: str) -> None:
    assert read_choice(reply, CHOICES) == choice


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "  \n",
        "C",
        "A B",
        "A or B",
        "A is better because",  # cut off
        "Verdict: A\nor so it seemed",
        "Verdict: A\nVerdict: B",
        "A\n\nThe winner is B.",
        "not A",
        "BA",
        "The answer depends.",
    ],
)
def test_what_says_nothing_or_two_things_is_an_abstention(reply: str) -> None:
    assert read_choice(reply, CHOICES) is None


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7.0),
        ("Score: 7/10", 7.0),
        ("8.5 out of 10", 8.5),
        ("Clear, and short.\nRating: **10**", 10.0),
        ("0", 0.0),
    ],
)
def test_a_score_is_read(reply: str, score: float) -> None:
    assert read_score(reply, 10) == score


@pytest.mark.parametrize("reply", ["", "11", "-1", "7/5", "seven", "7 8", "1e3", "nan", "Score: 3\nScore: 4"])
def test_a_score_out_of_range_or_of_another_range_is_an_abstention(reply: str) -> None:
    assert read_score(reply, 10) is None


@given(st.text(max_size=200))
def test_any_reply_is_read_or_is_an_abstention(reply: str) -> None:
    assert read_choice(reply, CHOICES) in {*CHOICES, None}
    score = read_score(reply, 10)
    assert score is None or 0 <= score <= 10
