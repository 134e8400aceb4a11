"""Threads share a piece of work, and what one raises is raised."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.cpu.cores import Cores


def test_every_share_is_done_once_in_a_thread_of_its_own() -> None:
    cores, barrier = Cores(3), threading.Barrier(3)
    done: list[tuple[int, int]] = []

    def work(share: int) -> None:
        barrier.wait(10)  # all at the same time
        done.append((share, threading.get_ident()))

    cores.run(work)
    assert sorted(share for share, _ in done) == [0, 1, 2]
    assert len({thread for _, thread in done}) == 3
    assert dict(done)[0] == threading.get_ident()
    cores.close()


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_raises_is_raised_and_they_go_on(fails: int) -> None:
    cores, done = Cores(2), []

    def work(share: int) -> None:
        if share == fails:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cores.run(work)
    cores.run(done.append)
    assert sorted(done) == [0, 1]
    cores.close()


def test_closed_its_threads_end() -> None:
    before = set(threading.enumerate())
    cores = Cores(3)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    cores.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@given(size=st.integers(0, 200), count=st.integers(1, 9), unit=st.integers(1, 20))
def test_parts_are_all_there_is_in_order(size: int, count: int, unit: int) -> None:
    cores = Cores.__new__(Cores)
    cores.count = count
    parts = [cores.part(size, share, unit) for share in range(count)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(size))
    assert all(part.start % unit == 0 or part.start == size for part in parts)
