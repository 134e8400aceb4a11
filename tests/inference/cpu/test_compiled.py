"""What is compiled runs where it can't be kept, too."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching

from selfplay_ray.inference.cpu.compiled import compiled


def doubled(number: int) -> int:
    return 2 * number


def test_it_runs_where_there_is_nowhere_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert compiled(doubled)(21) == 42


def test_it_runs_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def full(*_: object) -> None:
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    made = compiled(doubled)
    assert [made(21), made(4)] == [42, 8]
    assert tried == [1]


def test_who_comes_next_takes_what_was_kept(tmp_path: Path) -> None:
    code = (
        "from selfplay_ray.inference.cpu.threads import taken; import numpy as np;"
        "from selfplay_ray.inference.cpu.compiled import compiled;"
        "import selfplay_ray.inference.cpu.threads as module;"
        "made = compiled(module.taken.py_func); print(made(np.zeros(8, np.int64), 0));"
        "print(*made._made.stats.cache_hits.values())"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in hits] == [["0"], ["0", "1"]]
