"""macOS: ``sandbox-exec``, which is part of the system (and called deprecated since 2016), around the program.

Its profile denies by default. What it allows a program: to be the interpreter, to read that and the system's
libraries, to read and write a folder of its own. It can't fork, so what is ended is one process, and what watches
it (``supervisor.py``, outside) can't be reached by its signals. Memory is bounded by looking at it often, because
macOS doesn't hold a process to an address space.

The profile was written after the documentation and the profiles of others; the tests that run programs in it need
a Mac.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox.interpreter import Interpreter
from selfplay_ray.sandbox.limits import Limits
from selfplay_ray.sandbox.supervised import PROGRAM_FLAGS, SUPERVISOR_FLAGS, Launch, SupervisedSandbox
from selfplay_ray.sandbox.unsafe import new_folder

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
PROFILE = """\
(version 1)
(deny default)
(allow process-exec (subpath (param "PREFIX")))
(allow signal (target self))
(allow sysctl-read)
(allow file-read*
    (literal "/")
    (literal "/dev/null") (literal "/dev/random") (literal "/dev/urandom") (literal "/dev/zero")
    (literal "/private/etc/localtime") (subpath "/private/var/db/timezone") (subpath "/usr/share/zoneinfo")
    (subpath "/private/var/db/dyld") (subpath "/System/Volumes/Preboot/Cryptexes")
    (subpath "/usr/lib") (subpath "/System/Library")
    (subpath (param "PREFIX")) (subpath (param "FOLDER")))
(allow file-read-metadata
    (path-ancestors (param "PREFIX")) (path-ancestors (param "FOLDER"))
    (literal "/tmp") (literal "/var") (literal "/etc"))
(allow file-write* (subpath (param "FOLDER")))
(allow file-write-data (literal "/dev/null"))
"""
"""Nothing of a run is written into it: its parameters come beside it."""


@dataclass(frozen=True)
class Seatbelt(SupervisedSandbox):
    """``prefix`` is the folder the interpreter is installed in."""

    interpreter: Interpreter
    prefix: str

    name = "sandbox-exec"

    @classmethod
    def find(cls) -> Seatbelt:
        """Raises ConfigError: this is no Mac."""
        if not os.access(SANDBOX_EXEC, os.X_OK):
            raise ConfigError(f"there is no {SANDBOX_EXEC}, which only macOS has")
        return cls(Interpreter.running(), os.path.realpath(sys.base_prefix))

    @contextmanager
    def prepare(self, limits: Limits) -> Iterator[Launch]:
        folder, python = new_folder(), self.interpreter.executable
        parameters = ("-D", f"PREFIX={self.prefix}", "-D", f"FOLDER={folder}")
        yield Launch(
            command=(python, *SUPERVISOR_FLAGS),
            program_command=(SANDBOX_EXEC, *parameters, "-p", PROFILE, python, *PROGRAM_FLAGS),
            folder=folder,
            make_folder=True,
        )
