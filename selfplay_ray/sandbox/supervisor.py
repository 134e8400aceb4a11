"""Stands over one program: starts it, watches what it uses, and ends it with everything it started.

This file is not imported but handed to an interpreter (``python -I -S -c``), in the sandbox where that has a process
namespace of its own (where it is process 1, which nothing in the namespace can kill or stop, and with which
everything in it dies), and outside of it elsewhere. It uses the standard library alone.

On stdin it finds a job and then what the program is to read: eight bytes of length, then JSON (see ``Job``). When
all is over it writes a report as the last line on stderr, behind a mark that the program can't know.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import TypedDict

POLL_S = 0.02
MOST_FILES = 4096
ROUNDING = 2**16
FILES_MAPPED = 24 * 2**20
"""What a process may have mapped of files (the interpreter, its libraries) before it counts as shared memory."""
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
LINUX = sys.platform == "linux"


class Job(TypedDict):
    """``command`` runs the program from ``folder``/program.py; ``uid`` is whom to become before that, None for nobody
    else. ``make_folder`` says that the folder is to be made, and removed in the end. ``count_user`` says that no other
    processes are counted towards this user's. ``lifeline`` is a descriptor that is closed when all shall end."""

    program: str
    command: list[str]
    environment: dict[str, str]
    folder: str
    make_folder: bool
    uid: int | None
    count_user: bool
    lifeline: int | None
    mark: str
    seconds: float
    memory_bytes: int
    processes: int
    file_bytes: int


def main() -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # which process 1 doesn't heed; Python's own handler it would
    job = read_job()
    keep_out()
    if job["lifeline"] is not None:
        os.set_inheritable(job["lifeline"], False)
    if job["make_folder"]:
        os.mkdir(job["folder"], 0o700)
    try:
        status, exit_code, seconds = supervise(job)
    finally:
        if job["make_folder"]:
            remove(job["folder"])
    os.set_blocking(2, True)  # the program may have changed it: they share the pipe
    report = {"status": status, "exit_code": exit_code, "seconds": seconds}
    os.write(2, f"\n{job['mark']}{json.dumps(report)}\n".encode())


def read_job() -> Job:
    """Byte by byte what belongs to the job and no more: the rest of stdin is the program's."""
    job: Job = json.loads(read_exactly(int.from_bytes(read_exactly(8), "big")))
    return job


def read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part:
            raise SystemExit("stdin ended within the job")
        data += part
    return data


def keep_out() -> None:
    """Let nobody look into this process or write to its memory; adopt the orphans of what it starts. If the machine
    runs out of memory, let it and the program go first (in bubblewrap that is so already, and /proc read-only)."""
    if LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def supervise(job: Job) -> tuple[str, int | None, float]:
    """Run the program to its end or a limit's: the status, its exit code where it had one, seconds."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    with open(os.path.join(job["folder"], "program.py"), "w", encoding="utf-8", errors="replace") as file:
        file.write(job["program"])
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        become_the_program(job)
    os.close(0)
    try:
        status, exit_code = watch(job, child, started, woken)
    except (OSError, MemoryError):  # its limits may have been lowered by the program, where both are one user
        status, exit_code = "killed", None
    end_everything(child)
    return status, exit_code, time.monotonic() - started


def become_the_program(job: Job) -> None:
    """In the forked child: bounds that the kernel keeps, then the program."""
    try:
        os.setsid()
        os.chdir(job["folder"])
        for kind, most in limits(job):
            soft, hard = resource.getrlimit(kind)
            ours = (hard,) if kind == resource.RLIMIT_CORE else (soft, hard)
            bound = min([most, *(limit for limit in ours if limit != resource.RLIM_INFINITY)])
            resource.setrlimit(kind, (bound, bound))
        if job["uid"] is not None:
            os.setgroups([])
            os.setresgid(job["uid"], job["uid"], job["uid"])
            os.setresuid(job["uid"], job["uid"], job["uid"])
        os.nice(5)  # so that whoever watches has its turn
        os.execve(job["command"][0], job["command"], job["environment"])  # noqa: S606
    except BaseException as error:  # noqa: BLE001 - a fork of this process must not go on
        os.write(2, f"the program could not be started: {error!r}\n".encode())
    finally:
        os._exit(126)


def limits(job: Job) -> Iterator[tuple[int, int]]:
    # A machine that pipes core dumps to a program (systemd-coredump, apport) does so at a limit of 0, too; 1 is the
    # number that Linux keeps for "not even that", and too little for a file.
    yield resource.RLIMIT_CORE, int(LINUX)
    yield resource.RLIMIT_NOFILE, 64
    yield resource.RLIMIT_FSIZE, job["file_bytes"]
    yield resource.RLIMIT_CPU, int(job["seconds"]) + 2
    yield resource.RLIMIT_STACK, 8 * 2**20
    if LINUX:
        yield resource.RLIMIT_AS, job["memory_bytes"]
        yield resource.RLIMIT_MSGQUEUE, 0
        yield resource.RLIMIT_MEMLOCK, 0
        if job["count_user"]:
            yield (
                resource.RLIMIT_NPROC,
                job["processes"] + (job["uid"] is None),
            )  # this one is counted where it is the same user


def watch(job: Job, child: int, started: float, woken: int) -> tuple[str, int | None]:
    """Wait for the program's end or a limit: the status, and the exit code where it had one."""
    listened = [woken] if job["lifeline"] is None else [woken, job["lifeline"]]
    while True:
        exit_code = reaped(child)
        if exit_code is not None:
            return ("error" if exit_code else "ok"), exit_code
        if time.monotonic() - started > job["seconds"]:
            return "timeout", None
        passed = limit_passed(job, child)
        if passed is not None:
            return passed, None
        ready, _, _ = select.select(listened, [], [], POLL_S)
        if woken in ready:
            os.read(woken, 4096)
        if job["lifeline"] in ready:
            return "killed", None


def reaped(child: int) -> int | None:
    """Bury whoever has died; the exit code of ``child`` if it was among them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return os.waitstatus_to_exitcode(status)
            if pid == 0:
                return None
    return None


def limit_passed(job: Job, child: int) -> str | None:
    """Which limit the processes together are beyond, of those that the kernel doesn't keep for us."""
    pids = processes(child)
    if len(pids) > job["processes"]:
        return "processes"
    if sum(map(memory, pids)) > job["memory_bytes"]:
        return "memory"
    files, size = used(job["folder"])
    most = job["file_bytes"] + len(job["program"]) + ROUNDING
    return "files" if files > MOST_FILES or size > most else None


def processes(child: int) -> list[int]:
    """Everything that runs here because of ``child``."""
    if not LINUX:
        return [child]  # there the sandbox lets nothing fork
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != 1] if os.getpid() == 1 else descendants(pids)


def descendants(pids: list[int]) -> list[int]:
    """Those of ``pids`` that come from this process; orphans among them it has adopted."""
    parents = {}
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state != b"Z":
                parents[pid] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def memory(pid: int) -> int:
    """Bytes it has resident, other than pages of files; and of shared memory those it has mapped, because they stay
    in memory when it no longer has them resident."""
    if not LINUX:
        import subprocess

        asked = subprocess.run(["/bin/ps", "-o", "rss=", "-p", str(pid)], capture_output=True)  # noqa: S603
        return int(asked.stdout.strip() or 0) * 1024
    sizes = dict.fromkeys((b"VmSize", b"VmData", b"VmStk", b"RssAnon", b"RssShmem"), 0)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    not_private = sizes[b"VmSize"] - sizes[b"VmData"] - sizes[b"VmStk"]
    return sizes[b"RssAnon"] + max(sizes[b"RssShmem"], not_private - FILES_MAPPED)


def used(folder: str) -> tuple[int, int]:
    """How many files are in the folder, and their bytes."""
    if os.getpid() == 1:  # then it is a file system of its own
        system = os.statvfs(folder)
        return system.f_files - system.f_ffree, (system.f_blocks - system.f_bfree) * system.f_frsize
    files = size = 0
    for root, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(root, name)).st_size
        if files > MOST_FILES:
            break
    return files, size


def end_everything(child: int) -> None:
    """Kill the program and all that came from it, and wait until they are gone."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # as process 1: everything in this namespace, and nothing else
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return  # orphans were its children, too; and to look in /proc may be beyond what the program left it
    while pids := [pid for pid in processes(child) if exists(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reaped(child)
        time.sleep(0.001)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def remove(folder: str) -> None:
    """Remove the folder, whatever the program made of it."""
    import shutil

    sys.setrecursionlimit(10 * MOST_FILES)  # shutil's, on a folder in a folder in a folder
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    for root, folders, _ in os.walk(folder):
        for path in (os.path.join(root, name) for name in folders):
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
