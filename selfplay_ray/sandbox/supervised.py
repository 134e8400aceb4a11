"""A program under the supervisor (``supervisor.py``), whatever sandbox there is around both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from abc import abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from selfplay_ray.errors import SandboxError
from selfplay_ray.sandbox.limits import DEFAULT_LIMITS, Limits, Outcome, Sandbox, Status

if TYPE_CHECKING:
    from selfplay_ray.sandbox.supervisor import Job

SUPERVISOR = (Path(__file__).parent / "supervisor.py").read_text(encoding="utf-8")
SUPERVISOR_FLAGS = ("-I", "-S", "-c", SUPERVISOR)
"""What makes a Python interpreter the supervisor."""
PROGRAM_FLAGS = ("-I", "-B", "-X", "utf8", "program.py")
"""What makes it the program: nothing from the environment, no user's packages, no files beside the program."""
ENVIRONMENT = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "PATH": "/usr/bin:/bin"}
"""All that a program finds in its environment, beside its folder. (An arena for each thread would count towards its
address space.)"""

START_S = 30.0
"""What a sandbox may take to set itself up, beside the program's own time, before the run is given up."""
GRACE_S = 10.0
CONNECT_S = 0.2
REPORT_BYTES = 512

_slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Launch:
    """How one run is started: ``command`` runs the supervisor, which in turn runs ``program_command`` in ``folder``.

    ``descriptors`` are files of ours that the command inherits; ``is_local`` says that it inherits anything. The
    other fields are those of the supervisor's ``Job``.
    """

    command: tuple[str, ...]
    program_command: tuple[str, ...]
    folder: str
    make_folder: bool = False
    uid: int | None = None
    count_user: bool = False
    descriptors: tuple[int, ...] = ()
    is_local: bool = True


class SupervisedSandbox(Sandbox):
    """A sandbox made of a command that confines the supervisor and the program, or the program alone."""

    @abstractmethod
    def prepare(self, limits: Limits) -> contextlib.AbstractContextManager[Launch]:
        """What starts one run; whatever it needed is put away when the context ends."""

    async def abort(self, launch: Launch) -> None:
        """End a run at once, where it doesn't end with the lifeline and the process."""

    async def run(self, program: str, stdin: str = "", limits: Limits = DEFAULT_LIMITS) -> Outcome:
        async with one_of_few():
            with self.prepare(limits) as launch, Lifeline() as lifeline:
                playing = asyncio.create_task(self._play(launch, lifeline, program, stdin, limits))
                try:  # in a task of its own: a process that is cancelled while it is being started is lost to asyncio
                    return await asyncio.shield(playing)
                except asyncio.CancelledError:
                    lifeline.cut()
                    await self.abort(launch)
                    await asyncio.wait({playing})
                    raise

    async def _play(
        self, launch: Launch, lifeline: Lifeline, program: str, stdin: str, limits: Limits
    ) -> Outcome:
        process = await start(launch, lifeline)
        mark = secrets.token_hex(16)
        job = framed(job_of(launch, program, limits, mark, lifeline.inherited))
        run = _Run(process, limits)
        listening = asyncio.create_task(run.listen(job + stdin.encode(errors="replace")))
        try:
            await run.over(listening)
        finally:
            lifeline.cut()
            if process.returncode is None or not listening.done():
                await self.abort(launch)
                await run.bury(listening)
        if not listening.cancelled():
            listening.result()
        return run.outcome(mark)


def one_of_few() -> asyncio.Semaphore:
    """What bounds the runs at once on this event loop: one for each core."""
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(os.cpu_count() or 1)
    return _slots[loop]


class Lifeline:
    """A pipe of which the supervisor holds one end: when the other is closed, be it by our death, it ends the run."""

    def __init__(self) -> None:
        self.inherited, self._held = os.pipe()

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cut()
        os.close(self.inherited)

    def end_holders(self) -> bool:
        """Kill what holds the other end, and say whether anything did, for a command that was killed while it
        started: of bwrap there may be a child that waits for a word from its parent, and would forever. (Forks of
        ours hold it, too, in our session.)"""
        found = False
        pipe, own = f"pipe:[{os.fstat(self.inherited).st_ino}]", os.getsid(0)
        for descriptor in Path("/proc").glob(f"[0-9]*/fd/{self.inherited}"):
            pid = int(descriptor.parts[2])
            with contextlib.suppress(OSError):
                if os.readlink(descriptor) == pipe and os.getsid(pid) != own:
                    os.kill(pid, signal.SIGKILL)
                    found = True
        return found

    def cut(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


async def start(launch: Launch, lifeline: Lifeline) -> Process:
    """Raises SandboxError."""
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *launch.command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env={},
            cwd="/",
            pass_fds=(*launch.descriptors, lifeline.inherited) if launch.is_local else (),
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The loop is ending, and has cancelled asyncio's own task that connects the pipes.
        await asyncio.wait({starting}, timeout=CONNECT_S)
        starting.cancel()  # it has killed the process, and would wait forever for pipes that nobody connects
        for _ in range(100):  # again, for what one of them forked meanwhile
            if not lifeline.end_holders():
                break
            await asyncio.sleep(CONNECT_S / 10)
        raise
    except OSError as error:
        raise SandboxError(f"the sandbox's {launch.command[0]} could not be started: {error}") from error
    return process


def job_of(launch: Launch, program: str, limits: Limits, mark: str, lifeline: int) -> Job:
    """What the supervisor is told."""
    return {
        "program": program,
        "command": list(launch.program_command),
        "environment": {**ENVIRONMENT, "HOME": launch.folder, "TMPDIR": launch.folder},
        "folder": launch.folder,
        "make_folder": launch.make_folder,
        "uid": launch.uid,
        "count_user": launch.count_user,
        "lifeline": lifeline if launch.is_local else None,
        "mark": mark,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
    }


def framed(job: Job) -> bytes:
    """The job behind its length in eight bytes."""
    data = json.dumps(job).encode()
    return len(data).to_bytes(8, "big") + data


@dataclass(slots=True)
class _Run:
    """One process with its pipes."""

    process: Process
    limits: Limits
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    overflow: asyncio.Event = field(default_factory=asyncio.Event)
    gave_up: bool = False

    async def listen(self, given: bytes) -> None:
        """Feed the process and keep what it says, until it and everything that could say something has ended."""
        pipes = self.process.stdin, self.process.stdout, self.process.stderr
        assert pipes[0] is not None
        assert pipes[1] is not None
        assert pipes[2] is not None
        most = self.limits.output_bytes
        await asyncio.gather(
            _feed(pipes[0], given),
            self._keep(pipes[1], self.stdout, most),
            self._keep(pipes[2], self.stderr, most + REPORT_BYTES),
            self.process.wait(),
        )

    async def _keep(self, pipe: asyncio.StreamReader, kept: bytearray, most: int) -> None:
        while data := await pipe.read(2**16):
            if len(kept) + len(data) > most:
                self.overflow.set()
            kept += data[: most - len(kept)]

    async def over(self, listening: asyncio.Task[None]) -> None:
        """Wait until the process has ended, said too much, or had far more than its time."""
        overflow = asyncio.create_task(self.overflow.wait())
        try:
            ends, limit = {listening, overflow}, self.limits.seconds + START_S
            done, _ = await asyncio.wait(ends, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            overflow.cancel()
        self.gave_up = not done

    async def bury(self, listening: asyncio.Task[None]) -> None:
        """Wait for the end of what was told to end; kill it if that takes too long."""
        if self.process.stdin is not None:
            self.process.stdin.close()  # a supervisor that has no job yet looks there, not at its lifeline
        ending = asyncio.create_task(self.process.wait())  # the loop may have cancelled the other
        await asyncio.wait({listening, ending}, timeout=GRACE_S)
        if self.process.returncode is None:
            self.process.kill()
            await asyncio.wait({listening, ending}, timeout=GRACE_S)
        listening.cancel()
        ending.cancel()
        await asyncio.wait({listening, ending})

    def outcome(self, mark: str) -> Outcome:
        """Raises SandboxError: the supervisor has not begun."""
        said, found, reported = bytes(self.stderr).rpartition(f"\n{mark}".encode())
        report: dict[str, Any] = json.loads(reported) if found and not self.overflow.is_set() else {}
        stderr = said if found else bytes(self.stderr)
        texts = (
            self.stdout.decode(errors="replace"),
            stderr[: self.limits.output_bytes].decode(errors="replace"),
        )
        if self.overflow.is_set() or len(stderr) > self.limits.output_bytes:
            return Outcome("output", *texts, None, report.get("seconds", 0.0))
        if self.gave_up:
            return Outcome("timeout", *texts, None, self.limits.seconds)
        if report:
            return Outcome(_status(report, texts[1]), *texts, report["exit_code"], report["seconds"])
        code = self.process.returncode
        if code is None or code < 0 or code > 128:
            return Outcome("killed", *texts, None, 0.0)
        raise SandboxError(
            f"the sandbox failed with exit code {code}: {texts[1].strip() or 'it gave no reason'}"
        )


def _status(report: Mapping[str, Any], stderr: str) -> Status:
    """As reported; "memory", too, for a program that ended because the kernel gave it no more."""
    last = stderr.rstrip().rpartition("\n")[2]
    ran_out = report["status"] == "error" and last.startswith("MemoryError")
    status: Status = "memory" if ran_out else report["status"]
    return status


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.write(data)
        await pipe.drain()
    pipe.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await pipe.wait_closed()
