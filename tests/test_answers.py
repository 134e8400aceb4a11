"""Right or wrong, by hand; and nothing that a model may write makes any of it raise."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selfplay_ray.answers import Matching, final_answer, read_number, same_number, same_text
from selfplay_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", "7"),
        (r"so \boxed{7}.", "7"),
        (r"\boxed{6}, no: \boxed{7}", "7"),  # the last one
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7", ""),  # not closed
        ("<answer>7</answer>", "7"),
        ("<answer>6</answer> or <answer>7</answer>", "7"),
        ("<answer>7", ""),
        ("3 + 4 is\n#### 7", " 7"),
        (r"#### 6 <answer>7</answer>", "7"),
        ("", ""),
    ],
)
def test_the_final_answer_is_marked_or_all_there_is(text: str, answer: str):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Paris", "Paris", True),
        (" paris.\n", "Paris", True),
        ('**"Paris"**', "paris", True),
        ("New\n York", "new york", True),
        (r"\boxed{\text{Paris}}", "Paris", True),
        ("It is Paris", "Paris", False),
        ("Pari", "Paris", False),
        ("", "Paris", False),
        ("...", "!", False),  # nothing is left of either
        ("(1, 2]", "[1, 2)", False),
        (r"$x^2$", "x^2", True),
    ],
)
def test_exact(reply: str, answer: str, right: bool):
    assert same_text(reply, answer) == right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("3 + 4 = 7.", 7),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("= -7", -7),
        ("it is -$7", -7),
        ("$-7$", -7),
        ("10-7", 7),  # a subtraction, no sign
        ("(3)-7", 7),
        ("3 - 7", 7),
        ("1,234", 1234),
        ("$1,234,567.50", Fraction("1234567.5")),
        ("12,34", 34),  # no thousands: two numbers
        ("1,2345", 2345),
        (r"1{,}234", 1234),
        (r"1\,234", 1234),
        ("2.50", Fraction(5, 2)),
        (".5", Fraction(1, 2)),
        ("7.", 7),
        ("1e3", 1000),
        ("1.5E-2", Fraction(15, 1000)),
        ("5em", 5),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        ("5 cm", 5),
        ("5cm", 5),
        (r"5\text{ km}", 5),
        (r"90^\circ", 90),
        ("€5", 5),
        (r"\boxed{5} since 2 + 3", 5),
        ("#### 18", 18),
    ],
)
def test_a_number_is_read(text: str, value: Fraction | int):
    number = read_number(text)
    assert number is not None
    assert (number.value, number.percent) == (value, False)


@pytest.mark.parametrize(
    "text",
    ["", "seven", "x2", "3/0", r"\boxed{7", r"\boxed{}", "9" * 51, "1/" + "9" * 51, "½", "²", "-", "%"],
)
def test_what_is_no_number_is_not_read(text: str):
    assert read_number(text) is None
    assert same_number(text, text) == 0


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("The answer is 7!", "7", True),
        ("7 or 8", "7", False),
        ("-7", "7", False),
        ("7.0", "7", True),
        ("7.0000001", "7", False),  # whole numbers are compared exactly
        ("0.3333333", "1/3", True),  # off by 3.3e-8, a ten-millionth of it
        ("0.333", "1/3", False),
        ("10000001", "10000000", False),
        ("50%", "50%", True),
        ("50 percent", "50%", True),
        ("50", "50%", True),  # "what percent?"
        ("5000", "50%", False),
        ("0.5", "50%", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("0.5%", "50%", False),
        (r"50\%", "1/2", True),
        ("1,000 dollars", "$1000", True),
        ("10 apples", "She has 3 + 7 = <<3+7=10>>10 apples\n#### 10", True),
        ("7", "seven", False),
    ],
)
def test_numeric(reply: str, answer: str, right: bool):
    assert same_number(reply, answer) == right


@pytest.mark.parametrize(
    ("pattern", "reply", "right"),
    [
        ("{answer}", "it is 3.5", True),
        ("{answer}", "it is 345", False),  # the answer's full stop is no pattern
        (r"^answer: {answer}$", "first\nanswer: 3.5\nlast", True),
        (r"^answer: {answer}$", "the answer: 3.5", False),
        (r"\d{1,3}", "12", True),  # braces of its own, and no answer asked for
        (r"(?<!\w){answer}(?!\w)", "13.5", False),
        ("{answer}", "", False),
    ],
)
def test_a_pattern_is_found(pattern: str, reply: str, right: bool):
    assert Matching(pattern)(reply, " 3.5 ") == right


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"'\(\{answer\}' is no regular expression: missing \)"):
        Matching("({answer}")


TEXT = st.text() | st.text(alphabet="0123456789.,-/%$ e\\{}frac<>answer#boxed+", max_size=60)


@given(TEXT, TEXT)
@example("1e999", "1e-999")
@example("1e999999999", "1")
@example("9" * 5000, "9" * 5000)  # longer than Python converts
@example(r"\boxed{" * 2000, "1")
@example("<answer>" * 2000, "1")
@example("1," * 5000, "1")
def test_nothing_raises(reply: str, answer: str):
    for grade in (same_text, same_number, Matching("{answer}")):
        assert grade(reply, answer) in (0.0, 1.0)
