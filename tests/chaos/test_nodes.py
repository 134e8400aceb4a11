"""One of three nodes is killed, frozen, or cut off from the network: the run goes on without it, and its return is
harmless.

The long form prints how it went.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import accounts
import pytest
import spoken
from hosts import HEALTH, Host, a_port, hosts, why_not_namespaces
from length import LONG
from paced_run import CPUS, allow, configuration, pace
from processes import alive, end

from selfplay_ray.runlog.folder import RunLog

PROGRAM = Path(__file__).with_name("paced_run.py")

BEFORE, WITHOUT, AFTER = (3, 6, 3) if LONG else (2, 3, 2)
"""Steps before a node is hurt, while it is, and when it is back."""
AWAY_SECONDS = 20.0 if LONG else 0.0
"""How long it is hurt at least; until these steps are taken anyway."""
POLL_SECONDS = 0.1
LEAVING_SECONDS = 120
"""How long processes of a node that was given up may take to notice."""
PLAYERS = ("RolloutWorker", "InferenceEngine")


@dataclass
class Nodes:
    """The hosts of a cluster, the first of which is the head's."""

    hosts: list[Host]
    environment: dict[str, str]

    def __post_init__(self) -> None:
        head = self.hosts[0]
        port = a_port(head)
        self.address = f"{head.address}:{port}"
        head.start(self.environment, 0, "--head", f"--port={port}", "--include-dashboard=false")
        for host in self.hosts[1:]:
            self.start(host)

    def start(self, host: Host) -> None:
        host.start(self.environment, CPUS, f"--address={self.address}")

    def busy(self) -> Host:
        """One other than the head's with a worker and an engine."""
        while True:
            for host in self.hosts[1:]:
                if {kind for kind, _ in players(host)} == set(PLAYERS):
                    return host
            time.sleep(POLL_SECONDS)


def players(host: Host) -> set[tuple[str, int]]:
    """The actors there that play, by their class and process."""
    there = host.processes().items()
    return {(kind, pid) for pid, command in there for kind in PLAYERS if command.startswith(f"ray::{kind}")}


@pytest.fixture
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    with hosts(3) as made:
        yield Nodes(made, environment)


@dataclass
class PacedRun:
    """A run on ``nodes``, driven on the head's."""

    nodes: Nodes
    folder: Path
    process: subprocess.Popen[bytes]
    allowed: int = 0

    def allow(self, steps: int) -> None:
        """Let it take so many more."""
        self.allowed += steps
        allow(pace(self.folder), self.allowed)

    def take(self, steps: int) -> None:
        """Have it take so many more."""
        self.allow(steps)
        self.wait_for(self.allowed)

    def wait_for(self, step: int) -> None:
        """Until it has taken that one; if it never does, it ends by itself."""
        while accounts.steps_taken(RunLog(self.folder)) < step:
            assert self.process.poll() is None, self.said()
            time.sleep(POLL_SECONDS)

    def said(self) -> str:
        return self.folder.with_suffix(".log").read_text()


@pytest.fixture
def start(nodes: Nodes, tmp_path: Path, tiny: Path) -> Iterator[Callable[[int], PacedRun]]:
    """Starts the run; given how many steps."""
    folder = tmp_path / "hurt"
    started: list[subprocess.Popen[bytes]] = []

    def start(num_steps: int) -> PacedRun:
        allow(pace(folder), 0)
        with folder.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                nodes.hosts[0].command(sys.executable, str(PROGRAM), str(folder), str(tiny), str(num_steps)),
                env={**nodes.environment, **HEALTH, "RAY_ADDRESS": nodes.address},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return PacedRun(nodes, folder, process)

    yield start
    for process in started:
        end(process.pid)
        process.wait()


def hurt_and_heal(run: PacedRun, how: str) -> str:
    """Hurt a node while it plays, have steps taken without it, and have it back; what was measured."""
    run.take(BEFORE)
    host = run.nodes.busy()
    there = players(host)
    everybody = there.union(*(players(other) for other in run.nodes.hosts[1:]))
    hurt, heal = {
        "killed": (host.kill, host.kill),
        "frozen": (host.freeze, host.thaw),
        "cut off": (host.cut_off, host.heal),
    }[how]
    run.allow(WITHOUT)
    hurt()
    hurt_at, seconds = time.monotonic(), []
    for step in range(run.allowed - WITHOUT + 1, run.allowed + 1):
        run.wait_for(step)
        seconds.append(f"{time.monotonic() - hurt_at:.1f}")
    time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - hurt_at)))
    heal()
    healed_at = time.monotonic()
    run.take(AFTER)
    assert not alive({pid for _, pid in there}, LEAVING_SECONDS)  # whom Ray has given up
    leaving = time.monotonic() - healed_at
    host.kill()  # what is left of Ray there
    run.nodes.start(host)
    return (
        f"{how}, with {len(there)} of {len(everybody)} that play: steps {', '.join(seconds)} s after that; "
        f"they were gone {leaving:.0f} s after its return"
    )


def hurts() -> tuple[str, ...]:
    """All that there are, or one of them."""
    if why := why_not_namespaces():
        print(f"no node is cut off, because {why}")
        return ("frozen", "killed") if LONG else ("frozen",)
    return ("frozen", "cut off", "killed") if LONG else ("cut off",)


@pytest.mark.timeout(1500)
def test_a_node_that_is_lost_and_returns_costs_a_run_nothing_but_time(
    start: Callable[[int], PacedRun], tmp_path: Path, tiny: Path
):
    ways = hurts()
    num_steps = (BEFORE + WITHOUT + AFTER) * len(ways) + AFTER
    run = start(num_steps)
    for how in ways:
        print(hurt_and_heal(run, how))
    run.take(AFTER)
    assert run.process.wait() == 0, run.said()
    config = configuration(run.folder, tiny, num_steps)
    accounts.assert_nothing_was_lost_or_trained_twice(
        RunLog(run.folder), config, spoken.GROUP, spoken.CHILDREN
    )
