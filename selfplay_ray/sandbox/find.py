"""Which sandbox there is on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from selfplay_ray.errors import ConfigError, SandboxError
from selfplay_ray.sandbox.bubblewrap import Bubblewrap
from selfplay_ray.sandbox.docker import Docker
from selfplay_ray.sandbox.limits import Limits, Sandbox
from selfplay_ray.sandbox.monty import Monty
from selfplay_ray.sandbox.seatbelt import Seatbelt
from selfplay_ray.sandbox.unsafe import UnsafeSubprocess

AUTO = "auto"
SANDBOXES: Mapping[str, Callable[[], Sandbox]] = {
    Bubblewrap.name: Bubblewrap.find,
    Seatbelt.name: Seatbelt.find,
    Docker.name: Docker.find,
    Monty.name: Monty.find,
    UnsafeSubprocess.name: UnsafeSubprocess.find,
}
"""How each sandbox is found, by what ``--sandbox`` calls it."""
BY_ITSELF = (Bubblewrap.name, Seatbelt.name, Docker.name)
"""Those that "auto" chooses from, in this order: they hold, and run all of Python."""
TRIAL = "print(6 * 7)"


def find_sandbox(name: str = AUTO) -> Sandbox:
    """The sandbox called ``name``, or with "auto" the first of this machine's; a program was tried in it.

    Raises:
        ConfigError: there is none of that name, or it doesn't work here.
    """
    if name != AUTO:
        if name not in SANDBOXES:
            raise ConfigError(f"--sandbox {name} is unknown; there are {', '.join([AUTO, *SANDBOXES])}")
        try:
            return tried(SANDBOXES[name]())
        except ConfigError as error:
            raise ConfigError(f"--sandbox {name} can't be used on this machine: {error}") from None
    reasons = []
    for choice in BY_ITSELF:
        try:
            return tried(SANDBOXES[choice]())
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(
        "there is no sandbox on this machine to run model-written code in, so it is not run; install one, or name one "
        f"with --sandbox ({', '.join(SANDBOXES)}): {'; '.join(reasons)}"
    )


def tried(sandbox: Sandbox) -> Sandbox:
    """``sandbox``, once a program has given the right answer in it.

    Raises:
        ConfigError: it hasn't.
    """
    with ThreadPoolExecutor(1) as thread:  # because an event loop may be running in this one
        try:
            outcome = thread.submit(
                lambda: asyncio.run(sandbox.run(TRIAL, limits=Limits(seconds=20.0)))
            ).result()
        except SandboxError as error:
            raise ConfigError(str(error)) from None
    if outcome.stdout != "42\n":
        raise ConfigError(
            f"{sandbox.name} ran {TRIAL} as {outcome.status}: {' '.join(outcome.stderr.split())}"
        )
    return sandbox
