"""Threads for the tests of the compiled forward pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from selfplay_ray.inference.cpu.cores import Cores


@pytest.fixture
def cores() -> Iterator[Cores]:
    cores = Cores(3)
    yield cores
    cores.close()
