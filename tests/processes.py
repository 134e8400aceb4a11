"""Who is whose child, and who is still there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Some = TypeVar("Some", dict[int, str], set[int])

REPOSITORY = Path(__file__).parents[1]

RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
AGENT_FILES = ("ray/dashboard/agent.py", "ray/_private/runtime_env/agent/main.py")


def family(*pids: int) -> set[int]:
    """The processes ``pids`` and all that descend from them, as far as their parents live."""
    children: dict[int, list[int]] = {}
    for child, parent in process_table():
        children.setdefault(parent, []).append(child)
    found, left = set(), list(pids)
    while left:
        found.add(left[-1])
        left += children.get(left.pop(), [])
    return found


def named(title: str) -> set[int]:
    """Of this process's family, those that Ray has named after the actor's class ``title``."""
    ours = family(os.getpid())
    return {int(pid) for pid, _, _, args in _ps() if int(pid) in ours and args.startswith(f"ray::{title}")}


def actors() -> dict[int, str]:
    """The classes of the actors of this process' Ray, by process."""
    ours = family(os.getpid())
    found = {pid: title for pid, title in titles().items() if pid in ours and title.startswith("ray::")}
    return {
        pid: title.removeprefix("ray::").partition(".")[0]
        for pid, title in found.items()
        if not title.startswith(RAYS_OWN)
    }


def actors_left(seconds: float = 10.0) -> list[str]:
    """The classes of those that don't go away within ``seconds``."""
    return list(_left(actors, seconds).values())


def titles() -> dict[int, str]:
    """What everything that runs calls itself."""
    return {int(pid): title for pid, _, _, title in _ps()}


def process_table() -> list[tuple[int, int]]:
    """(process, parent) of everything that runs and is no zombie."""
    return [(int(pid), int(parent)) for pid, parent, state, _ in _ps() if not state.startswith("Z")]


def process_arguments() -> dict[int, str]:
    """The command line of everything that runs, or what has been put in its place."""
    return {int(pid): args for pid, _, state, args in _ps() if not state.startswith("Z")}


def agents() -> set[int]:
    """Ray's own agents, which outlive a raylet that was killed by a minute or so; before and after they take a name."""
    return {
        int(pid)
        for pid, _, _, args in _ps()
        if (args.startswith("ray::") and args.endswith("Agent")) or any(file in args for file in AGENT_FILES)
    }


def _ps() -> list[list[str]]:
    command = ["ps", "-ww", "-eo", "pid=,ppid=,stat=,args="]  # -ww: however narrow readline says it is
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [row for line in table.splitlines() if len(row := line.split(None, 3)) == 4]


def alive(pids: set[int], seconds: float) -> set[int]:
    """Those of ``pids`` that don't go away within ``seconds``."""
    return _left(lambda: pids & {pid for pid, _ in process_table()}, seconds)


def _left(look: Callable[[], Some], seconds: float) -> Some:
    """What ``look`` still finds when it has found something for ``seconds``, or nothing."""
    deadline = time.monotonic() + seconds
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
