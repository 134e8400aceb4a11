"""Docker, where there is a daemon and the image is there already: nothing is ever pulled.

A container for each program, without network, capabilities or a way to gain any, read-only but for a folder in
memory; memory and processes are bounded by its control group. A container outlives the client that started it, so
one whose client was killed ends at its program's time limit, by its own supervisor.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selfplay_ray.errors import ConfigError
from selfplay_ray.sandbox.limits import Limits
from selfplay_ray.sandbox.supervised import PROGRAM_FLAGS, SUPERVISOR_FLAGS, Launch, SupervisedSandbox

IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
PYTHON = "/usr/local/bin/python3"
FOLDER = "/tmp"  # noqa: S108 - the container's
NOBODY = "65534:65534"
LOOK_S = 20


@dataclass(frozen=True)
class Docker(SupervisedSandbox):
    """``binary`` is Docker's client; ``image`` has a Python at ``/usr/local/bin``."""

    binary: str
    image: str = IMAGE

    name = "docker"

    @classmethod
    def find(cls) -> Docker:
        """Raises ConfigError: there is no client, no daemon or no image."""
        binary = shutil.which("docker")
        if binary is None:
            raise ConfigError("docker isn't installed")
        try:
            command = [binary, "image", "inspect", "--format", "{{.Id}}", IMAGE]
            looked = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_S)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise ConfigError(f"docker didn't answer within {LOOK_S} s") from None
        if looked.returncode:
            reason = " ".join(looked.stderr.split())
            raise ConfigError(f"docker has no image {IMAGE}, or doesn't answer ({reason})")
        return cls(binary)

    @contextmanager
    def prepare(self, limits: Limits) -> Iterator[Launch]:
        container = f"selfplay-sandbox-{secrets.token_hex(8)}"
        yield Launch(
            command=(
                *(self.binary, "run", "--name", container, *self._options(limits)),
                *(self.image, PYTHON, *SUPERVISOR_FLAGS),
            ),
            program_command=(PYTHON, *PROGRAM_FLAGS),
            folder=FOLDER,
            is_local=False,
        )

    def _options(self, limits: Limits) -> Iterator[str]:
        yield from ("--rm", "--interactive", "--pull", "never", "--log-driver", "none", "--network", "none")
        yield from (
            "--read-only",
            "--user",
            NOBODY,
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
        )
        supervised = limits.memory_bytes + limits.file_bytes + 64 * 2**20
        yield from ("--memory", str(supervised), "--memory-swap", str(supervised))
        yield from ("--pids-limit", str(limits.processes + 1), "--ipc", "none", "--hostname", "sandbox")
        size = limits.file_bytes + 2**20
        yield from ("--tmpfs", f"{FOLDER}:rw,noexec,nosuid,nodev,mode=1777,size={size}", "--workdir", FOLDER)

    async def abort(self, launch: Launch) -> None:
        container = launch.command[launch.command.index("--name") + 1]
        quiet = asyncio.subprocess.DEVNULL
        kill = await asyncio.create_subprocess_exec(
            self.binary, "kill", container, stdout=quiet, stderr=quiet
        )
        await kill.wait()
