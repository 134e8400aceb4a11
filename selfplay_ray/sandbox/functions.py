"""Calling a function that a model wrote, in a sandbox: literals go in, literals come out."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Limits, Sandbox

LONGEST_LITERAL = 1000
DRIVER = """

import json as __json
try:
    from builtins import print as __print
except ImportError:  # in Monty
    __print = print
for __index, __arguments in {calls}:
    try:
        __result = f"{{{name}(*__arguments)!r}}"
    except Exception:
        continue
    __print("\\n" + __json.dumps([__index, __result]), flush=True)
"""
"""Follows the function's definition, whose names it leaves alone and doesn't rely on: a function may be called index,
keep a global result, or print in its own way. What is expected of the function isn't said there."""


def read_literal(text: str, longest: int = LONGEST_LITERAL) -> tuple[Any] | None:
    """The one Python literal that ``text`` is (a number, a string, a list, …), in a tuple; None if it is none, or
    longer than ``longest``."""
    if len(text) > longest:
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
    program = source + DRIVER.format(
        calls=[(index, tuple(call)) for index, call in enumerate(calls)], name=name
    )
    outcome = await sandbox.run(program, limits=limits)
    results: list[str | None] = [None] * len(calls)
    for line in outcome.stdout.splitlines():
        match _read(line):
            case [int(index), str(result)] if 0 <= index < len(calls):
                results[index] = result.encode(errors="replace").decode()  # half a surrogate is no text
    return results


def _read(line: str) -> object:
    """What a line says in JSON; None for a line that the function printed."""
    try:
        return json.loads(line) if line.startswith("[") else None
    except (ValueError, RecursionError):
        return None
