"""Every sandbox that this machine has, and a secret outside of it."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes_here import FOUND, descriptors, found, processes_of_sandboxes, temporary_files

from selfplay_ray.sandbox import Sandbox


@pytest.fixture(params=FOUND)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Each one that runs all of Python and claims to hold."""
    return found(request.param)


@pytest.fixture(params=["bubblewrap", "bubblewrap-user"])
def bubblewrap(request: pytest.FixtureRequest) -> Sandbox:
    return found(request.param)


@pytest.fixture
def secret() -> str:
    return f"secret-{secrets.token_hex(8)}"


@pytest.fixture
def secret_files(secret: str, tmp_path: Path) -> Iterator[list[Path]]:
    """Files with the secret that anybody may read and write: in the home folder, among the temporary files, here."""
    places = [Path.home(), Path(tempfile.gettempdir()), tmp_path, Path(__file__).parent]
    files = [place / f".{secret}.txt" for place in places]
    for file in files:
        file.write_text(secret)
        file.chmod(0o666)
    yield files
    for file in files:
        file.unlink()


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Fails the test if a process, a file or a descriptor is left of what it ran."""
    before = processes_of_sandboxes(), temporary_files(), descriptors()
    yield
    deadline = time.monotonic() + 20
    while processes_of_sandboxes() - before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of_sandboxes() - before[0] == set()
    assert temporary_files() - before[1] == set()
    assert descriptors() <= before[2]
