"""Programs against their tests: how tests are read, and what a program gets that passes some."""

from __future__ import annotations

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.program_tests import CallTest, OutputTest, PassesTests, program_in, read_tests
from selfplay_ray.sandbox import Limits, find_sandbox

DOUBLE = "assert double(2) == 4\nassert double('ab') == 'abab'"


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        (DOUBLE, [CallTest("double", (2,), 4), CallTest("double", ("ab",), "abab")]),
        (
            '["assert f() == [1]", "assert g(1, [2]) == (3,)"]',
            [CallTest("f", (), [1]), CallTest("g", (1, [2]), (3,))],
        ),
        ("\n  assert f(-1) == -1  \n\n", [CallTest("f", (-1,), -1)]),
        ('[{"input": "1 2", "output": "3"}]', [OutputTest("1 2", "3")]),
    ],
)
def test_tests_are_read(text: str, tests: list[object]):
    assert read_tests(text) == tests


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[]",
        "{}",
        '[{"input": "1"}]',
        "assert f(1)",
        "assert f(1) == g(1)",  # what is expected would have to be run
        "assert f(x) == 1",
        "assert f(1) == 1; import os",
        "f(1) == 1",
        "assert f(1, key=2) == 3",
        "assert f(1) ==",
    ],
)
def test_what_is_no_test_is_refused(text: str):
    with pytest.raises(ConfigError, match=r"give lines like assert f\(1, 2\) == 3"):
        read_tests(text)


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        ("print(1)", "print(1)"),
        ("So:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```\nprint(1)\n```\nor\n```py\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)", "print(1)"),  # cut off
    ],
)
def test_the_program_is_in_the_last_fences(reply: str, program: str):
    assert program_in(reply) == program


@pytest.fixture(scope="module")
def passes() -> PassesTests:
    return PassesTests(find_sandbox("unsafe-subprocess"), Limits(seconds=10))


@pytest.mark.parametrize(
    ("program", "worth"),
    [
        ("def double(x): return 2 * x", 1.0),
        ("```python\ndef double(x):\n    return x * 2\n```", 1.0),
        ("def double(x): return 4", 0.5),
        ("def double(x): return x + 2", 0.5),  # raises for the text
        ("def twice(x): return 2 * x", 0.0),
        ("def double(x): print(4)", 0.0),
        ("def double(x", 0.0),
        ("import sys; sys.exit(0)", 0.0),  # ending well is not passing
        ("", 0.0),
    ],
)
async def test_a_program_is_worth_the_share_of_calls_that_are_right(
    passes: PassesTests, program: str, worth: float
):
    assert await passes(program, DOUBLE) == worth


async def test_a_program_is_worth_the_share_of_right_outputs(passes: PassesTests):
    tests = (
        '[{"input": "1 2", "output": "3\\n"}, {"input": "0 0", "output": "0"}, {"input": "", "output": ""}]'
    )
    assert await passes("print(sum(map(int, input().split())), ' ')", tests) == pytest.approx(2 / 3)
    assert await passes("print(3)", tests) == pytest.approx(1 / 3)
    assert await passes("print(3); raise SystemExit(1)", tests) == 0
