"""Does a program that a model wrote pass its tests? It runs in a sandbox, and what is expected of it stays outside."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox import Limits, Sandbox, call_function
from selfplay_ray.sandbox.functions import LONGEST_LITERAL, read_literal

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
FORMS = 'lines like assert f(1, 2) == 3, or a JSON list of {"input": TEXT, "output": TEXT}'


@dataclass(frozen=True, slots=True)
class CallTest:
    """``name(*arguments)`` must be ``expected``."""

    name: str
    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True, slots=True)
class OutputTest:
    """What is printed, but for spaces at the ends of lines and of all, must be ``expected``, with ``stdin`` to read."""

    stdin: str
    expected: str


def read_tests(text: str) -> list[CallTest] | list[OutputTest]:
    """The tests in ``text``: lines like ``assert f(1, 2) == 3`` of literals, or a JSON list of such, or a JSON list of
    ``{"input": TEXT, "output": TEXT}``.

    Raises:
        ConfigError: it is none of these, or empty.
    """
    try:
        rows = json.loads(text)
    except ValueError:
        rows = text.splitlines()
    rows = [row for row in rows if row not in ("", None)] if isinstance(rows, list) else []
    if rows and all(isinstance(row, Mapping) and {"input", "output"} <= row.keys() for row in rows):
        return [OutputTest(str(row["input"]), str(row["output"])) for row in rows]
    calls = [_call(row) for row in rows if not isinstance(row, str) or row.strip()]
    if not calls:
        raise ConfigError(f"no tests in {text[:60]!r}; give {FORMS}")
    return calls


def program_in(reply: str) -> str:
    """What is between the last fences of ``reply``, or all of it where there are none."""
    blocks = FENCED.findall(reply)
    return str(blocks[-1]) if blocks else reply


@dataclass(frozen=True, slots=True)
class PassesTests:
    """The share of the tests in the answer that the program in the reply passes.

    Raises:
        ConfigError: when called, if the answer is no tests.
        SandboxError: when called, if the sandbox failed.
    """

    sandbox: Sandbox
    limits: Limits

    async def __call__(self, reply: str, answer: str) -> float:
        program, tests = program_in(reply), read_tests(answer)
        passed = 0
        for test in tests:
            if isinstance(test, OutputTest):
                outcome = await self.sandbox.run(program, test.stdin, self.limits)
                passed += outcome.ok and _trimmed(outcome.stdout) == _trimmed(test.expected)
        calls = [test for test in tests if isinstance(test, CallTest)]
        for name in dict.fromkeys(call.name for call in calls):
            passed += await self._calls_passed(program, [call for call in calls if call.name == name])
        return passed / len(tests)

    async def _calls_passed(self, program: str, tests: Sequence[CallTest]) -> int:
        arguments = [test.arguments for test in tests]
        results = await call_function(self.sandbox, program, tests[0].name, arguments, self.limits)
        return sum(
            result is not None and read_literal(result, _longest(test.expected)) == (test.expected,)
            for test, result in zip(tests, results, strict=True)
        )


def _longest(expected: object) -> int:
    """How long what equals it may be: in other words than ours, as with floats for integers, but not without end."""
    return LONGEST_LITERAL + 2 * len(str(expected))


def _call(row: object) -> CallTest:
    try:
        match ast.parse(str(row).strip()).body:
            case [ast.Assert(test=ast.Compare(left=call, ops=[ast.Eq()], comparators=[expected]))]:
                match call:
                    case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                        values = tuple(map(ast.literal_eval, arguments))
                        return CallTest(name, values, ast.literal_eval(expected))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise ConfigError(f"{str(row)[:60]!r} is no test; give {FORMS}")


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())
