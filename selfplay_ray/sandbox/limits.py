"""What a program may use, and how its run came out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Literal

from selfplay_ray.errors import ConfigError

Status = Literal["ok", "error", "timeout", "memory", "output", "processes", "files", "killed"]
"""ok: it ended by itself, with exit code 0; error: with another one, or by a signal. The next five name the limit
that it was ended at. killed: something else ended it, such as the kernel for want of memory."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program, with all that it starts, may use before it is ended.

    ``seconds`` is wall-clock time; ``memory_bytes`` bounds each process's address space and the sum of what its
    processes have resident, and of shared memory have mapped (a page that forked processes share counts for each);
    ``output_bytes`` what it prints, on each of its two streams; ``processes`` its processes at once, their threads
    included where the backend can count them; ``file_bytes`` what it has written in its folder.

    Raises:
        ConfigError: a limit isn't a finite number above 0.
    """

    seconds: float = 5.0
    memory_bytes: int = 256 * 2**20
    output_bytes: int = 64 * 2**10
    processes: int = 16
    file_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"a sandbox's limit {name} is {value}; it must be finite and above 0")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program.

    ``exit_code`` is minus the signal's number where one ended it, and None where a limit did; ``seconds`` is the
    wall-clock time it ran. Output is cut at its limit, and what isn't UTF-8 in it replaced.
    """

    status: Status
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Sandbox(ABC):
    """Runs Python programs that nobody trusts: no network, no files but those of the interpreter and a folder of the
    program's own, nothing of our environment, and limits that hold for everything it starts."""

    name: str
    """What ``--sandbox`` calls it."""

    @abstractmethod
    async def run(self, program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """Run ``program``, which may read ``stdin``, until it ends or reaches a limit; then nothing of it is left.

        So it is, too, when the awaiting task is cancelled or this process is killed. As many run at once in this
        process as it has cores; others wait.

        Raises:
            SandboxError: the sandbox itself failed, which says nothing about the program.
        """
