"""No sandbox: a process like any other, with limits and an empty environment, for whoever names it with ``--sandbox``.

The program can read and write what this user can, and reach the network. It is never chosen by itself.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfplay_ray.sandbox.interpreter import Interpreter
from selfplay_ray.sandbox.limits import Limits
from selfplay_ray.sandbox.supervised import PROGRAM_FLAGS, SUPERVISOR_FLAGS, Launch, SupervisedSandbox


@dataclass(frozen=True)
class UnsafeSubprocess(SupervisedSandbox):
    """Limits without walls: an honest program that goes wrong is ended, a hostile one does as it likes."""

    interpreter: Interpreter

    name = "unsafe-subprocess"

    @classmethod
    def find(cls) -> UnsafeSubprocess:
        return cls(Interpreter.running())

    @contextmanager
    def prepare(self, limits: Limits) -> Iterator[Launch]:
        python = self.interpreter.executable
        yield Launch(
            command=(python, *SUPERVISOR_FLAGS),
            program_command=(python, *PROGRAM_FLAGS),
            folder=new_folder(),
            make_folder=True,
        )


def new_folder() -> str:
    """A name among the temporary files that nothing has."""
    return str(Path(tempfile.gettempdir()).resolve() / f"selfplay-sandbox-{secrets.token_hex(8)}")
