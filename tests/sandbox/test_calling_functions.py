"""Functions that a model wrote, called with literals."""

from __future__ import annotations

import pytest
from sandboxes_here import found

from selfplay_ray.errors import ConfigError
from selfplay_ray.program_tests import PassesTests
from selfplay_ray.sandbox import Limits, Sandbox, call_function, find_sandbox, read_literal


@pytest.fixture(params=["bubblewrap", "monty"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "bubblewrap":
        return found("bubblewrap")
    try:
        return find_sandbox("monty")
    except ConfigError as error:
        pytest.skip(str(error))


async def test_each_call_has_its_result(sandbox: Sandbox):
    source = "def f(a, b):\n    return a // b"
    assert await call_function(sandbox, source, "f", [[7, 2], (1, 0), [-7, 2]]) == ["3", None, "-4"]


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def g(a): return a",
        "def f(a: return a",
        "def f(a):\n    return '''",
        "f = 3",
        "raise SystemExit",
        "return 7",
        "x = '''",
    ],
)
async def test_what_is_no_function_returns_nothing(sandbox: Sandbox, source: str):
    assert await call_function(sandbox, source, "f", [[1], [2]]) == [None, None]


async def test_what_a_function_prints_is_not_what_it_returns(sandbox: Sandbox):
    source = "def f(a):\n    print('[1, \"x\"]', [2, 'y'], end='')\n    return [a, 'é', None]"
    assert await call_function(sandbox, source, "f", [["é"]]) == ["['é', 'é', None]"]


@pytest.mark.parametrize("name", ["index", "arguments", "result", "json", "repr", "enumerate"])
async def test_a_function_may_be_called_anything(sandbox: Sandbox, name: str):
    assert await call_function(sandbox, f"def {name}(a):\n    return a + 1", name, [[1], [2]]) == ["2", "3"]


@pytest.mark.parametrize(
    "source",
    [
        "result = {}\ndef f(a):\n    result[a] = a + 1\n    return result[a]",
        "index, arguments, json = 1, 0, 0\ndef f(a):\n    return index + arguments + json + a",
        "def repr(a):\n    return 'x'\ndef enumerate(a):\n    return []\ndef f(a):\n    return a + 1",
    ],
)
async def test_a_function_keeps_its_globals(sandbox: Sandbox, source: str):
    assert await call_function(sandbox, source, "f", [[1], [2], [3]]) == ["2", "3", "4"]


async def test_a_function_may_print_in_its_own_way():
    source = "import sys\nprint = sys.stdout.write\ndef f(a):\n    print('so')\n    return a"
    assert await call_function(found("bubblewrap"), source, "f", [[1], [2]]) == ["1", "2"]
    source = "def print(a):\n    return a"
    assert await call_function(found("bubblewrap"), source, "print", [[1], [2]]) == ["1", "2"]


async def test_an_answer_may_be_as_long_as_the_right_one():
    passes = PassesTests(found("bubblewrap"), Limits(seconds=10))
    test = f"assert f(900) == {list(range(900))}"
    assert await passes("def f(n): return list(range(n))", test) == 1
    assert await passes("def f(n): return [float(i) for i in range(n)]", test) == 1  # equal, and longer
    assert await passes("def f(n): return list(range(n - 1))", test) == 0


async def test_a_result_is_text(sandbox: Sandbox):
    """Half a surrogate, which can't be encoded, would stop whoever makes a prompt of it."""
    (result,) = await call_function(sandbox, "print('[0, \"a\\\\ud800\"]')\nraise SystemExit", "f", [[1]])
    assert result == "a?"


async def test_results_before_a_limit_count():
    source = "def f(a):\n    while a > 1: pass\n    return a"
    got = await call_function(found("bubblewrap"), source, "f", [[0], [1], [2], [0]], Limits(seconds=0.5))
    assert got == ["0", "1", None, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", (3,)), (" -4\n", (-4,)), ("'a'", ("a",)), ("[1, (2, None)]", ([1, (2, None)],)), ("None", (None,)),
        ("x", None), ("", None), ("1 +", None), ("f(3)", None), ("__import__('os')", None), ("(" * 500, None),
        ("9" * 2000, None), ("2 ** 9", None), ("{[]: 1}", None),
    ],
)  # fmt: skip
def test_only_literals_are_read(text: str, value: tuple[object] | None):
    assert read_literal(text) == value
