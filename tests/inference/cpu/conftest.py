"""Threads for the tests of the forward pass in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from selfplay_ray.inference.cpu.cores import Cores


@pytest.fixture
def cores() -> Iterator[Cores]:
    cores = Cores(3)
    yield cores
    cores.close()
