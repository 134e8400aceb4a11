"""What is compiled runs where it can't be kept, too."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching

from selfplay_ray.inference.cpu.compiled import EDITION, compiled, edition


def doubled(number: int) -> int:
    return 2 * number


KEPT_AND_TAKEN = """
import numpy as np
import selfplay_ray.inference.cpu.threads as module
from selfplay_ray.inference.cpu.compiled import compiled

made = compiled(module.taken.py_func)
print(made(np.zeros(8, np.int64), 0), *made._made.stats.cache_hits.values())
"""


def kept_and_taken(folder: Path) -> list[int]:
    """What a function returns, and how often what was kept in ``folder`` was taken, in a process of its own."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", KEPT_AND_TAKEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


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
    assert [kept_and_taken(tmp_path) for _ in range(2)] == [[0], [0, 1]]


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_what_is_torn_is_made_and_kept_anew(suffix: str, tmp_path: Path) -> None:
    kept_and_taken(tmp_path)
    (kept,) = tmp_path.rglob(f"*.{suffix}")
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    assert [kept_and_taken(tmp_path) for _ in range(2)] == [[0], [0, 1]]


def test_nothing_is_taken_of_what_another_source_came_to(tmp_path: Path) -> None:
    """A function's own file may have stayed as it is, where one that it calls is in another."""
    for name in ("caller.py", "called.py", "notes.txt"):
        (tmp_path / name).write_text("1")
    before = edition(tmp_path)
    (tmp_path / "notes.txt").write_text("2")
    assert edition(tmp_path) == before
    (tmp_path / "called.py").write_text("2")
    after = edition(tmp_path)
    (tmp_path / "called.py").rename(tmp_path / "callee.py")
    assert len({before, after, edition(tmp_path)}) == 3


def test_what_is_kept_is_of_this_source(tmp_path: Path) -> None:
    kept_and_taken(tmp_path)
    assert all(EDITION in path.name for path in tmp_path.rglob("*.nb?"))
