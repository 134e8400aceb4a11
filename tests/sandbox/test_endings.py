"""Runs that are ended from outside, many runs, and runs at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import cloudpickle
from sandboxes_here import found, processes_of_sandboxes

from selfplay_ray.errors import SandboxError
from selfplay_ray.sandbox import Limits, Sandbox
from selfplay_ray.sandbox.bubblewrap import Bubblewrap
from selfplay_ray.sandbox.supervised import Launch

pytestmark = pytest.mark.usefixtures("leaves_nothing")
ROOT = Path(__file__).parents[2]
MANY = int(os.environ.get("SELFPLAY_SANDBOX_RUNS", "24"))
"""How many programs the test of many runs: 1000 is what is claimed, and takes some minutes."""
STUBBORN = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0: os.setsid()
print('begun', flush=True)
while True: pass
"""


async def begun(before: set[int]) -> None:
    """Until the program, its child and their supervisor run."""
    if sys.platform != "linux":
        await asyncio.sleep(2)
        return
    while len(processes_of_sandboxes() - before) < 3:
        await asyncio.sleep(0.02)


async def test_a_cancelled_run_is_over_when_the_cancellation_is(sandbox: Sandbox):
    before = processes_of_sandboxes()
    run = asyncio.create_task(sandbox.run(STUBBORN, limits=Limits(seconds=60)))
    await begun(before)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert processes_of_sandboxes() - before == set()


async def test_a_run_may_be_cancelled_at_any_moment(sandbox: Sandbox):
    for moment in range(8):
        run = asyncio.create_task(sandbox.run(STUBBORN, limits=Limits(seconds=60)))
        await asyncio.sleep(moment * 0.02)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


def test_an_event_loop_may_end_at_any_moment_of_a_run():
    """It cancels all of its tasks, and so asyncio's own that a process is started with."""
    found("bubblewrap")
    script = """
import asyncio, time
from selfplay_ray.sandbox import find_sandbox
sandbox = find_sandbox("bubblewrap")
async def leave(turns):
    run = asyncio.create_task(sandbox.run("while True: pass"))
    for _ in range(turns): await asyncio.sleep(0)
    await asyncio.sleep(turns // 12 * 0.01)
for turns in range(36):
    started = time.monotonic()
    asyncio.run(leave(turns))
    assert time.monotonic() - started < 9, turns
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=90, check=True)


@pytest.mark.parametrize("name", ["bubblewrap", "bubblewrap-user", "sandbox-exec", "unsafe-subprocess"])
def test_a_run_ends_with_the_process_that_started_it(name: str):
    if name != "unsafe-subprocess":
        found(name)
    make = {
        "bubblewrap-user": "dataclasses.replace(Bubblewrap.find(), user_namespace=True)",
    }.get(name, f"find_sandbox({name!r})")
    script = (
        "import asyncio, dataclasses\nfrom selfplay_ray.sandbox import Limits, find_sandbox\n"
        "from selfplay_ray.sandbox.bubblewrap import Bubblewrap\n"
        f"asyncio.run({make}.run({STUBBORN!r}, limits=Limits(seconds=600)))"
    )
    before = processes_of_sandboxes()
    owner = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    asyncio.run(asyncio.wait_for(begun(before), 60))
    owner.kill()
    owner.wait()  # what is left of it is looked for when the test is over


async def test_many_runs_leave_nothing(sandbox: Sandbox):
    """Every fourth fails, every fifth reaches a limit."""
    limits = Limits(seconds=20, output_bytes=1000)

    async def one(number: int) -> None:
        ends = "raise ValueError" if number % 4 == 0 else "print('x' * 2000)" if number % 5 == 0 else ""
        outcome = await sandbox.run(
            f"import os\nprint({number}, flush=True)\nos.fork()\n{ends}", limits=limits
        )
        assert outcome.stdout.startswith(str(number)), outcome
        assert outcome.status == ("error" if number % 4 == 0 else "output" if number % 5 == 0 else "ok")

    if sandbox.name == "sandbox-exec":
        pytest.skip("it lets nothing fork")
    await asyncio.gather(*map(one, range(1, MANY + 1)))


@dataclasses.dataclass(frozen=True)
class Counting(Bubblewrap):
    """Counts how many run at once."""

    running: list[int] = dataclasses.field(default_factory=list)
    most: list[int] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def prepare(self, limits: Limits) -> Iterator[Launch]:
        self.running.append(1)
        self.most.append(len(self.running))
        with super().prepare(limits) as launch:
            yield launch
        self.running.pop()


async def test_no_more_run_at_once_than_there_are_cores():
    sandbox = found("bubblewrap")
    assert isinstance(sandbox, Bubblewrap)
    counting = Counting(sandbox.binary, sandbox.interpreter, sandbox.user_namespace)
    await asyncio.gather(*(counting.run("") for _ in range(2 * (os.cpu_count() or 1) + 2)))
    assert max(counting.most) == (os.cpu_count() or 1)


async def test_the_event_loop_goes_on_meanwhile():
    """What the program waits for comes from the loop that awaits it: a stalled one would never let it end."""
    sandbox = found("bubblewrap")
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    outcome = await sandbox.run("import time\ntime.sleep(0.5)")
    ticking.cancel()
    assert outcome.status == "ok"
    assert ticks > 5


async def test_a_sandbox_that_fails_says_so_rather_than_scoring_the_program(tmp_path: Path):
    sandbox = found("bubblewrap")
    assert isinstance(sandbox, Bubblewrap)
    with pytest.raises(SandboxError, match=r"exit code 127: .*/nowhere/bwrap"):
        await dataclasses.replace(sandbox, binary="/nowhere/bwrap").run("")
    gone = dataclasses.replace(sandbox.interpreter, reads=(str(tmp_path / "gone"),))
    with pytest.raises(SandboxError, match=r"the sandbox failed with exit code 1: bwrap: .*gone"):
        await dataclasses.replace(sandbox, interpreter=gone).run("")


def test_a_sandbox_travels_to_other_processes(sandbox: Sandbox):
    assert cloudpickle.loads(cloudpickle.dumps(sandbox)) == sandbox  # as Ray sends an arena to its workers


def test_runs_in_one_event_loop_after_another(sandbox: Sandbox):
    for _ in range(2):
        started = time.monotonic()
        outcome = asyncio.run(sandbox.run("print(1)"))
        assert (outcome.stdout, outcome.seconds < time.monotonic() - started) == ("1\n", True)
