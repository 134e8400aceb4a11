"""Threads share a piece of work, and what one raises is raised."""

from __future__ import annotations

import itertools
import os
import threading
import time
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.cpu.cores import WITHIN, Cores, Share, allowed


def test_every_share_is_done_once_in_a_thread_of_its_own(cores: Cores) -> None:
    barrier, done = threading.Barrier(3), []

    def work(share: Share) -> None:
        barrier.wait(10)  # all at the same time
        done.append((share.start, share.stop, threading.get_ident()))

    cores.run("kind", work)
    bounds = [bound for start, stop, _ in sorted(done) for bound in (start, stop)]
    assert (bounds[0], bounds[1], bounds[3]) == (0, bounds[2], bounds[4])
    assert bounds[5] == pytest.approx(1)
    assert len({thread for _, _, thread in done}) == 3
    assert min(done)[2] == threading.get_ident()


def test_one_core_does_it_all() -> None:
    done: list[Share] = []
    Cores(1).run("kind", done.append)
    assert done == [Share(0, 1)]


@pytest.mark.parametrize("first", [True, False])
def test_what_one_raises_is_raised_and_they_go_on(first: bool, cores: Cores) -> None:
    def work(share: Share) -> None:
        if (share.start == 0) is first:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cores.run("kind", work)
    done: list[Share] = []
    cores.run("kind", done.append)
    assert len(done) == 3


def test_who_is_slower_is_given_less() -> None:
    cores, kept = Cores(2), []

    def work(share: Share) -> None:
        if share.start == 0:
            kept.append(share.stop)
        else:
            time.sleep(0.002)  # the other thread, however little it is given

    for _ in range(20):
        cores.run("slow", work)
    assert kept[0] == 0.5
    assert kept[-1] == WITHIN[1]
    for kind in ("another", None, None):
        cores.run(kind, work)
        assert kept[-1] == 0.5
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


@given(size=st.integers(0, 200), unit=st.integers(1, 20), bounds=st.lists(st.floats(0, 1), max_size=8))
def test_parts_are_all_there_is_in_order(size: int, unit: int, bounds: list[float]) -> None:
    edges = [0.0, *sorted(bounds), 1.0]
    parts = [Share(*edge).of(size, unit) for edge in itertools.pairwise(edges)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(size))
    assert all(part.start % unit == 0 or part.start == size for part in parts)


def test_all_threads_are_called_together(cores: Cores) -> None:
    barrier, done = threading.Barrier(3), []

    def work(number: int) -> None:
        barrier.wait(10)
        done.append(number)

    cores.together(work, never)
    assert sorted(done) == [0, 1, 2]


def never() -> None:
    raise AssertionError("nobody has failed")


@pytest.mark.parametrize("who", [0, 2])
def test_what_one_of_them_raises_is_raised_and_no_other_waits_for_it(who: int, cores: Cores) -> None:
    given_up = threading.Event()

    def work(number: int) -> None:
        if number == who:
            raise ValueError("no")
        assert given_up.wait(10)

    with pytest.raises(ValueError, match="no"):
        cores.together(work, given_up.set)
    cores.together(lambda number: None, never)


def test_an_interrupted_call_leaves_nothing_for_the_next(
    cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, given_up, ended = threading.Event(), threading.Event(), []

    def slow(number: int) -> None:
        assert number == 0 or may_end.wait(10)

    class Interrupted(SimpleQueue):  # type: ignore[type-arg]
        def get(self) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("selfplay_ray.inference.cpu.cores.SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            cores.together(slow, given_up.set)

    may_end.set()
    cores.together(ended.append, never)
    assert sorted(ended) == [0, 1, 2]


def test_as_many_threads_as_a_blas_is_told_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert allowed() == 3
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "none")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert allowed() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert 1 <= allowed() <= os.cpu_count()
