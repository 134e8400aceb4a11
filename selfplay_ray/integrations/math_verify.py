"""Are two mathematical expressions the same? Asked of math-verify, which asks SymPy.

SymPy takes for ever over some of what a model writes, and math-verify stops it with signals, which work in a main
thread only. So it runs in a process of its own, which its own alarm ends when it takes too long.
"""

from __future__ import annotations

import asyncio
import functools
import json
import resource
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from selfplay_ray.errors import ConfigError, RubricError

LONGEST = 10_000  # characters of a reply; the answer is at its end
MEMORY = 4 * 2**30  # bytes of address space
TOO_LONG = (-signal.SIGALRM, -signal.SIGKILL)
"""How the process ends by its alarm, or by a kernel that is out of memory."""


@dataclass(frozen=True, slots=True)
class MathVerify:
    """1 if the reply's last expression equals the answer, else 0; also where that took longer than ``seconds``.

    Raises:
        ConfigError: math-verify isn't installed.
        RubricError: when called, if math-verify itself failed.
    """

    seconds: int = 5

    def __post_init__(self) -> None:
        try:
            import math_verify  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "math_verify":
                raise
            raise ConfigError(
                "math-verify isn't installed; it comes with an extra: pip install 'selfplay-ray[math]'"
            ) from None

    async def __call__(self, reply: str, answer: str) -> float:
        return await _checker().same(reply[-LONGEST:], answer, self.seconds)


class Checker:
    """A process that checks one pair after the other, and the next one in its place if it took too long."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "math-verify")  # so that nobody waits for an answer but this
        self._process: subprocess.Popen[str] | None = None

    async def same(self, reply: str, answer: str, seconds: int) -> float:
        """1 if both are the same, 0 if not, or if that isn't known after ``seconds``.

        Raises:
            RubricError: the process failed for another reason.
        """
        question = json.dumps([reply, answer, seconds])
        line = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, question)
        return float(json.loads(line))

    def _ask(self, question: str) -> str:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return line
        self._process = None
        self._finalizer()
        if process.returncode in TOO_LONG:
            return "0"
        raise RubricError(
            f"math-verify ended with exit code {process.returncode}; its last words are on stderr"
        )

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(  # noqa: S603 - this very module
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._finalizer = weakref.finalize(self, _end, self._process)  # also when this process ends
        return self._process


def _end(process: subprocess.Popen[str]) -> None:
    """Let it end by itself, which it does when nobody asks any more."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with process:
        pass


@functools.cache
def _checker() -> Checker:
    return Checker()


def serve() -> None:
    """Answer the lines on standard input until there are no more, in the process of a :class:`Checker`."""
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        reply, answer, seconds = json.loads(line)
        signal.alarm(seconds)  # not handled, so it ends the process, whatever that is busy with
        try:
            # Without timeouts of math-verify's own, which would take the alarm away.
            wanted = parse(answer, parsing_timeout=None) or parse(f"${answer}$", parsing_timeout=None)
            said = parse(reply, parsing_timeout=None)
            same = bool(wanted and said) and verify(wanted, said, timeout_seconds=None)
        except (MemoryError, RecursionError):
            same = False
        signal.alarm(0)
        print(json.dumps(float(same)), flush=True)  # noqa: T201 - it is what the Checker reads


if __name__ == "__main__":
    serve()
