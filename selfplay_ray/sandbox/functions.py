"""Calling a function that a model wrote, in a sandbox: literals go in, literals come out."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Limits, Sandbox

LONGEST_LITERAL = 1000
DRIVER = """

import json
for index, arguments in enumerate({calls}):
    try:
        result = repr({name}(*arguments))
    except Exception:
        continue
    print("\\n" + json.dumps([index, result]), flush=True)
"""
"""Follows the function's definition. What is expected of the function isn't said there."""


def read_literal(text: str) -> tuple[Any] | None:
    """The one Python literal that ``text`` is (a number, a string, a list, …), in a tuple; None if it is none."""
    if len(text) > LONGEST_LITERAL:
        return None
    try:
        return (ast.literal_eval(text.strip()),)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


async def call_function(
    sandbox: Sandbox, source: str, name: str, calls: Sequence[Sequence[Any]], limits: Limits = DEFAULT_LIMITS
) -> list[str | None]:
    """Run ``source``, and call the function ``name`` of it with each of ``calls``, one after the other.

    A call is the arguments, all literals; the answer is the ``repr`` of what was returned, and None where the call
    raised, wasn't reached within ``limits``, or where there is no such function.

    Raises:
        SandboxError: the sandbox itself failed.
    """
    program = source + DRIVER.format(calls=[tuple(call) for call in calls], name=name)
    outcome = await sandbox.run(program, limits=limits)
    results: list[str | None] = [None] * len(calls)
    for line in outcome.stdout.splitlines():
        match _read(line):
            case [int(index), str(result)] if 0 <= index < len(calls):
                results[index] = result
    return results


def _read(line: str) -> object:
    """What a line says in JSON; None for a line that the function printed."""
    try:
        return json.loads(line) if line.startswith("[") else None
    except (ValueError, RecursionError):
        return None
