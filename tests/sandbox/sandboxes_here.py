"""Which sandboxes this machine has, and what is left of runs in them."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox import Sandbox, find_sandbox
from selfplay_ray.sandbox.bubblewrap import Bubblewrap
from selfplay_ray.sandbox.find import tried


def bubblewrap_as_a_user() -> Sandbox:
    """As an ordinary user has it: with a user namespace."""
    return tried(dataclasses.replace(Bubblewrap.find(), user_namespace=True))


FOUND: dict[str, Callable[[], Sandbox]] = {
    "bubblewrap": lambda: find_sandbox("bubblewrap"),
    "bubblewrap-user": bubblewrap_as_a_user,
    "sandbox-exec": lambda: find_sandbox("sandbox-exec"),
    "docker": lambda: find_sandbox("docker"),
}
TRIED: dict[str, Sandbox | str] = {}


def found(name: str) -> Sandbox:
    """The sandbox, or the test is skipped for the reason it gives."""
    if name not in TRIED:
        try:
            TRIED[name] = FOUND[name]()
        except ConfigError as error:
            TRIED[name] = str(error)
    sandbox = TRIED[name]
    if isinstance(sandbox, str):
        pytest.skip(sandbox)
    return sandbox


def processes_of_sandboxes() -> set[int]:
    """Every process that is a supervisor or runs a program, or what that forked."""
    found: set[int] = set()
    if not Path("/proc").is_dir():
        return found
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"program.py" in command.split(b"\0") or b"Stands over one program" in command:
                found.add(int(folder.name))
    return found


def temporary_files() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("selfplay-sandbox")}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
