"""Closing an engine waits for the very end of its thread, where MLX still takes the interpreter's lock."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import selfplay_ray.inference.engine as engine_module
from selfplay_ray.errors import ModelError
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.engine_core import EngineCore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")

LATE_SECONDS = 0.3  # long enough that whoever doesn't wait is surely too early


class LateEnd:
    """Does something at the end of each thread that called ``mark``, later than Python's own end of it."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None)
        self._key = ctypes.c_uint()
        self._called = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: act())
        assert self._libc.pthread_key_create(ctypes.byref(self._key), self._called) == 0

    def mark(self) -> None:
        assert self._libc.pthread_setspecific(self._key, ctypes.c_void_p(1)) == 0

    def close(self) -> None:
        self._libc.pthread_key_delete(self._key)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch):
    """A list that is no longer empty when the thread of an engine has wholly ended."""
    ended: list[bool] = []

    def act() -> None:
        time.sleep(LATE_SECONDS)
        ended.append(True)

    late = LateEnd(act)

    def core(*args: object) -> EngineCore:
        late.mark()
        return EngineCore(*args)

    monkeypatch.setattr(engine_module, "EngineCore", core)
    yield ended
    late.close()


def test_closing_waits_for_the_very_end_of_the_thread(tiny: Path, ended: list[bool]):
    engine = Engine(tiny)
    assert ended == []
    engine.close()
    assert ended == [True]


def test_so_does_an_engine_that_finds_no_model(tmp_path: Path, ended: list[bool]):
    with pytest.raises(ModelError):
        Engine(tmp_path / "none")
    assert ended == [True]
