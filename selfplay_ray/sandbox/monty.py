"""`Monty <https://github.com/pydantic/monty>`_ (``pip install 'selfplay-ray[sandbox]'``): an interpreter of its own
for a part of Python, which knows no files, processes or network, for expressions and small functions.

It is not chosen by itself, since valid programs fail in it: there is no ``yield`` and little of the standard
library. ``input()`` reads the program's stdin line by line; ``sys.stdin`` there is none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Limits, Outcome, Sandbox, Status
from selfplay_ray.sandbox.supervised import one_of_few

if TYPE_CHECKING:
    from pydantic_monty import MontyError

STATUSES: Mapping[type[BaseException], Status] = {TimeoutError: "timeout", MemoryError: "memory"}
"""What its limits raise in the program."""


class TooMuchOutput(Exception):
    """What it printed is longer than may be."""


@dataclass(frozen=True)
class Monty(Sandbox):
    """Each program gets a worker process of its own, which runs nothing but Monty."""

    name = "monty"

    @classmethod
    def find(cls) -> Monty:
        """Raises ConfigError: it isn't installed."""
        if find_spec("pydantic_monty") is None:
            raise ConfigError("pydantic-monty isn't installed (pip install 'selfplay-ray[sandbox]')")
        return cls()

    async def run(self, program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        async with one_of_few():
            printed = _Printed(limits.output_bytes)
            started = time.monotonic()
            error = await _play(program, _lines(stdin), limits, printed)
            return _outcome(error, printed, time.monotonic() - started)


@dataclass(slots=True)
class _Printed:
    most: int
    texts: dict[str, str] = field(default_factory=lambda: {"stdout": "", "stderr": ""})
    overflow: bool = False

    def __call__(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        whole = (self.texts[stream] + text).encode(errors="replace")
        self.texts[stream] = whole[: self.most].decode(errors="replace")
        if len(whole) > self.most:
            self.overflow = True
            raise TooMuchOutput


def _lines(stdin: str) -> Mapping[str, object]:
    """What ``input`` is for the program."""
    lines = iter(stdin.splitlines())

    def read_line(prompt: str = "") -> str:
        line = next(lines, None)
        if line is None:
            raise ValueError("EOF when reading a line")
        return line

    return {"input": read_line}


async def _play(
    program: str, names: Mapping[str, object], limits: Limits, printed: _Printed
) -> MontyError | TooMuchOutput | None:
    """How it failed, if it did."""
    from pydantic_monty import AsyncMonty, MontyError, ResourceLimits

    bounds = ResourceLimits(max_feed_duration_secs=limits.seconds, max_memory=limits.memory_bytes)
    pool = AsyncMonty(max_processes=1, request_timeout=limits.seconds + 1)
    async with (
        pool,
        pool.checkout(limits=bounds, script_name="program.py", os_policy={"sleep": "zero"}) as session,
    ):
        try:
            await session.feed_run(program, external_lookup=dict(names), print_callback=printed)
        except (MontyError, TooMuchOutput) as error:
            return error
    return None


def _outcome(error: MontyError | TooMuchOutput | None, printed: _Printed, seconds: float) -> Outcome:
    from pydantic_monty import MontyCrashedError, MontyError, MontyRuntimeError

    status: Status = "error" if error else "ok"
    stderr = printed.texts["stderr"]
    if printed.overflow:
        status = "output"
    elif isinstance(error, MontyCrashedError):
        status = "timeout" if error.timed_out else "killed"
    elif isinstance(error, MontyError):
        status = STATUSES.get(type(error.exception()), "error")
        stderr += error.display() if isinstance(error, MontyRuntimeError) else str(error)
    code = {"ok": 0, "error": 1}.get(status)
    return Outcome(status, printed.texts["stdout"], stderr, code, seconds)
