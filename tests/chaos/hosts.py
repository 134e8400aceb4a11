"""Hosts on one machine that Ray takes for machines of their own, to be killed, frozen and cut off.

Where it may be done, each is a network namespace at a switch; elsewhere they share this machine's network, and can't be
cut off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from processes import alive, end, family, process_arguments

HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""A host that is lost is noticed after seconds, not after a minute."""
START_SECONDS = 300
HOSTS_FILES = Path("/etc/netns")
"""Where ``ip netns exec`` finds what a namespace has in place of files of /etc."""


@dataclass(frozen=True)
class Host:
    """``namespace`` is its network's name; without one it shares this machine's. Its processes have its ``folder`` in
    their command lines, or descend from one that has."""

    folder: Path
    address: str
    namespace: str | None = None

    def command(self, *command: str) -> list[str]:
        """What runs ``command`` on this host."""
        return ["ip", "netns", "exec", self.namespace, *command] if self.namespace else list(command)

    def start(self, environment: Mapping[str, str], num_cpus: int, *more: str) -> None:
        """Start Ray there."""
        self.folder.mkdir(exist_ok=True)
        ray = Path(sys.executable).with_name("ray")
        options = [
            f"--node-ip-address={self.address}",
            f"--num-cpus={num_cpus}",
            f"--temp-dir={self.folder}",
            f"--object-store-memory={100 * 2**20}",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
        ]
        # A head that can't be reached is asked for ten minutes.
        command = self.command("timeout", str(START_SECONDS), str(ray), "start", *options, *more)
        started = subprocess.run(command, env={**environment, **HEALTH}, capture_output=True, text=True)
        if started.returncode:
            raise AssertionError(started.stdout + started.stderr)

    def processes(self) -> dict[int, str]:
        """Those there, and their command lines; of an actor's, Ray makes it its class's name."""
        arguments = process_arguments()
        roots = [pid for pid, command in arguments.items() if f"{self.folder}/" in command]
        return {pid: arguments.get(pid, "") for pid in family(*roots)}

    def kill(self) -> None:
        """Everything there, at once as far as that can be."""
        while there := self.processes():
            for pid in there:
                end(pid)
            alive(set(there), 10)

    def freeze(self) -> set[int]:
        """Whom it stopped: all that are there, also those that are made meanwhile."""
        frozen: set[int] = set()
        while fresh := set(self.processes()) - frozen:
            _signal(fresh, signal.SIGSTOP)
            frozen |= fresh
        return frozen

    def thaw(self) -> None:
        _signal(set(self.processes()), signal.SIGCONT)

    def cut_off(self) -> None:
        """Pull its cable out of the switch."""
        self._set_cable("down")

    def heal(self) -> None:
        self._set_cable("up")

    def _set_cable(self, state: str) -> None:
        assert self.namespace is not None
        _ip("-netns", _switch(self.namespace), "link", "set", _cable(self.namespace), state)


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def why_not_namespaces() -> str:
    """Why there can't be network namespaces here; empty where there can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "there is no program `ip`, which makes network namespaces"
    name = f"chaos{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces can't be made here: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other, without Ray. Nothing of them is left in the end."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))  # short: Ray puts sockets there
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = [Host(folder / f"host{number}", "127.0.0.1") for number in range(count)]
        if not why_not_namespaces():
            made = stack.enter_context(_namespaces(made))
        for host in made:
            stack.callback(host.kill)
        yield made


def a_port(host: Host) -> int:
    """One that is free there."""
    if host.namespace:
        return 6379
    with socket.create_server((host.address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def _namespaces(made: list[Host]) -> Iterator[list[Host]]:
    """Give each a network of its own, with a cable to a switch that is in one as well: nothing is seen on this
    machine's."""
    switch = _switch(f"chaos{os.getpid()}-0")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_namespace(switch, "127.0.0.1"))
        _ip("-netns", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-netns", switch, "link", "set", "bridge", "up")
        moved = []
        for number, host in enumerate(made):
            name, address = f"chaos{os.getpid()}-{number}", f"10.99.0.{number + 1}"
            stack.enter_context(_namespace(name, address))
            _ip("link", "add", _cable(name), "netns", switch, "type", "veth", "peer", "eth0", "netns", name)
            _ip("-netns", switch, "link", "set", _cable(name), "master", "bridge", "up")
            _ip("-netns", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-netns", name, "link", "set", "eth0", "up")
            moved.append(replace(host, address=address, namespace=name))
        yield moved


@contextlib.contextmanager
def _namespace(name: str, address: str) -> Iterator[None]:
    files = HOSTS_FILES / name
    files.mkdir(parents=True)
    try:
        (files / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        (files / "resolv.conf").write_text("")  # nobody there answers, and Ray would wait for it
        _ip("netns", "add", name)
        try:
            _ip("-netns", name, "link", "set", "lo", "up")
            yield
        finally:
            _ip("netns", "delete", name)
    finally:
        shutil.rmtree(files)


def _switch(namespace: str) -> str:
    return f"{namespace.partition('-')[0]}-switch"


def _cable(namespace: str) -> str:
    """The end at the switch."""
    return f"to-{namespace.partition('-')[2]}"


def _ip(*command: str) -> None:
    done = subprocess.run(["ip", *command], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(command)}: {done.stderr}")
