"""The replay buffer: nothing that was put is lost, nothing is trained on twice."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from selfplay_ray.errors import ReplayError
from selfplay_ray.replay import Lease, ReplayBuffer, ReplayCounts, fresh_records
from selfplay_ray.types import PolicySpan, RoleStats, RolloutGroup, TrainingRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def record(name: str, *versions: int) -> TrainingRecord:
    """A record of one token per version."""
    tokens = len(versions)
    return TrainingRecord(
        id=name,
        role_id="Solver",
        rollout_id=name,
        episode_type="solve",
        prompt_token_ids=(5, 6, 7),
        completion_token_ids=tuple(range(tokens)),
        logprobs=(-0.1234567890123,) * tokens,
        action_mask=(True,) * tokens,
        spans=tuple(PolicySpan(i, i + 1, version) for i, version in enumerate(versions)),
        temperature=0.7,
        reward=1.0,
        advantage=-0.25,
    )


def group(name: str, roots: int = 1, *records: TrainingRecord) -> RolloutGroup:
    return RolloutGroup(
        name, roots, records, {"Solver": RoleStats(2, 0.5, 0.5)}, {"rubric/exact/Solver": 0.5}
    )


def leased(buffer: ReplayBuffer, roots: int) -> Lease:
    lease = buffer.lease(roots)
    assert lease is not None
    return lease


def ids(lease: Lease) -> list[str]:
    return [group.id for group in lease.groups]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buffer(clock: Clock) -> Iterator[ReplayBuffer]:
    with ReplayBuffer(None, lease_seconds=60, clock=clock) as buffer:
        yield buffer


def test_a_group_comes_out_exactly_as_it_went_in(tmp_path: Path) -> None:
    original = group("g", 3, record("a", 1, 2), record("b", 4))
    with ReplayBuffer(tmp_path / "replay.sqlite") as buffer:
        assert buffer.put(original)
    with ReplayBuffer(tmp_path / "replay.sqlite") as buffer:
        assert leased(buffer, 3).groups == (original,)


def test_oldest_first_until_the_roots_suffice(buffer: ReplayBuffer) -> None:
    for name, roots in [("a", 2), ("b", 3), ("c", 4)]:
        buffer.put(group(name, roots))
    assert buffer.counts() == ReplayCounts(queued=3, leased=0, acked=0, roots=9, acked_roots=0)
    lease = leased(buffer, 4)  # 2 < 4 <= 2 + 3
    assert ids(lease) == ["a", "b"]
    assert buffer.counts() == ReplayCounts(queued=1, leased=2, acked=0, roots=4, acked_roots=0)
    assert buffer.lease(5) is None
    buffer.ack(lease.id, 1)
    assert buffer.counts() == ReplayCounts(queued=1, leased=0, acked=2, roots=4, acked_roots=5)
    assert ids(leased(buffer, 4)) == ["c"]


def test_at_the_end_all_there_is_is_leased_at_once(buffer: ReplayBuffer) -> None:
    assert buffer.lease(9, or_fewer=True) is None
    for name in "abc":
        buffer.put(group(name, 2))
    assert buffer.lease(9) is None
    assert ids(leased_or_fewer(buffer, 3)) == ["a", "b"]
    assert ids(leased_or_fewer(buffer, 9)) == ["c"]


def leased_or_fewer(buffer: ReplayBuffer, roots: int) -> Lease:
    lease = buffer.lease(roots, or_fewer=True)
    assert lease is not None
    return lease


def test_a_group_put_again_is_refused_queued_leased_or_trained(buffer: ReplayBuffer) -> None:
    assert buffer.put(group("a"))
    assert not buffer.put(group("a"))
    lease = leased(buffer, 1)
    assert not buffer.put(group("a"))
    buffer.ack(lease.id, 1)
    assert not buffer.put(group("a"))
    assert buffer.lease(1) is None


def test_acking_twice_and_acking_what_was_never_leased_raise(buffer: ReplayBuffer) -> None:
    buffer.put(group("a"))
    lease = leased(buffer, 1)
    buffer.ack(lease.id, 1)
    with pytest.raises(ReplayError, match=f"{lease.id}.*acked before"):
        buffer.ack(lease.id, 1)
    with pytest.raises(ReplayError, match=f"{lease.id}.*acked before"):
        buffer.release(lease.id)
    with pytest.raises(ReplayError, match="'no-such-lease' is unknown"):
        buffer.ack("no-such-lease", 1)


def test_released_groups_keep_their_place_in_line(buffer: ReplayBuffer) -> None:
    buffer.put(group("a"))
    buffer.put(group("b"))
    lease = leased(buffer, 1)
    buffer.release(lease.id)
    assert ids(leased(buffer, 2)) == ["a", "b"]
    with pytest.raises(ReplayError, match="was released"):
        buffer.ack(lease.id, 1)


def test_an_expired_lease_goes_back_and_can_no_longer_be_acked(buffer: ReplayBuffer, clock: Clock) -> None:
    buffer.put(group("a"))
    first = leased(buffer, 1)
    clock.now += 59
    assert buffer.lease(1) is None
    clock.now += 1
    assert buffer.counts().queued == 1
    second = leased(buffer, 1)
    assert ids(second) == ["a"]
    with pytest.raises(ReplayError, match=f"{first.id}.*leased again"):
        buffer.ack(first.id, 1)
    buffer.ack(second.id, 1)


def test_a_late_ack_counts_while_nobody_else_has_the_groups(buffer: ReplayBuffer, clock: Clock) -> None:
    buffer.put(group("a"))
    lease = leased(buffer, 1)
    clock.now += 1_000
    buffer.ack(lease.id, 1)
    assert buffer.lease(1) is None


def test_an_expired_lease_is_taken_over_whole_or_not_at_all(buffer: ReplayBuffer, clock: Clock) -> None:
    """Else a late ack of [a, b] would train b a second time when only a had been leased again."""
    buffer.put(group("a"))
    buffer.put(group("b"))
    both = leased(buffer, 2)
    clock.now += 60
    assert ids(leased(buffer, 1)) == ["a"]
    with pytest.raises(ReplayError):
        buffer.ack(both.id, 1)
    assert ids(leased(buffer, 1)) == ["b"]


def test_reopening_requeues_what_was_leased_and_remembers_what_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        for name in "abc":
            buffer.put(group(name))
        buffer.ack(leased(buffer, 1).id, 1)
        leased(buffer, 1)
    with ReplayBuffer(path) as buffer:
        assert buffer.counts() == ReplayCounts(queued=2, leased=0, acked=1, roots=2, acked_roots=1)
        assert not buffer.put(group("a"))
        assert ids(leased(buffer, 2)) == ["b", "c"]


def test_after_reopening_a_lease_may_still_be_acked_until_its_groups_are_leased_again(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        buffer.put(group("a"))
        lease = leased(buffer, 1)
    with ReplayBuffer(path) as buffer:
        buffer.ack(lease.id, 1)
        assert buffer.counts().acked == 1


def test_a_restarted_queue_honours_the_leases_it_had_given(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path, lease_seconds=60, clock=clock) as buffer:
        buffer.put(group("a"))
        lease = leased(buffer, 1)
    with ReplayBuffer(path, lease_seconds=60, requeue=False, clock=clock) as buffer:
        assert buffer.lease(1) is None
        buffer.ack(lease.id, 1)
        assert buffer.counts().acked == 1


def test_a_learner_that_goes_back_trains_on_the_same_groups_in_the_same_order(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    originals = [group(name, 1, record(name, 1)) for name in "abcd"]
    with ReplayBuffer(path) as buffer:
        for one in originals:
            buffer.put(one)
        for version in (1, 2, 3):
            buffer.ack(leased(buffer, 1).id, version)
        buffer.forget(1)  # the checkpoint of version 1 is written
        leased(buffer, 1)  # and the learner dies
    with ReplayBuffer(path) as buffer:
        assert buffer.rewind(1) == 2
        assert list(leased(buffer, 3).groups) == originals[1:]
        assert not buffer.put(originals[0])
        with pytest.raises(ReplayError, match=r"forgotten 1 groups .* after version 0"):
            buffer.rewind(0)


def test_a_group_and_the_state_of_its_maker_are_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        assert buffer.state() is None
        buffer.put(group("a"), b"after a")
        buffer.put(group("b"), b"after b")
        buffer.put(group("c"))
    with ReplayBuffer(path) as buffer:
        assert buffer.state() == b"after b"


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    program = f"""
import sys, time
from pathlib import Path
from selfplay_ray.replay import ReplayBuffer
from selfplay_ray.types import RolloutGroup
buffer = ReplayBuffer(Path({str(path)!r}))
for name in "abc":
    buffer.put(RolloutGroup(name, 1, (), {{}}, {{}}))
buffer.ack(buffer.lease(1).id, 1)
buffer.lease(1)
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(ReplayError, match="another process has it open"):
        ReplayBuffer(path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with ReplayBuffer(path) as buffer:
        assert buffer.counts() == ReplayCounts(queued=2, leased=0, acked=1, roots=2, acked_roots=1)
        assert ids(leased(buffer, 2)) == ["b", "c"]


def test_the_file_does_not_grow_with_what_was_trained(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        for i in range(100):
            buffer.put(group(str(i), 1, record(str(i), *([1] * 2_000))), state=bytes(1_000))
            buffer.ack(leased(buffer, 1).id, i)
            buffer.forget(i)
    one_group = 2_000 * (9 + 1 + 1)  # at least a float, a mask and a token id each
    assert path.stat().st_size < 20 * one_group


def test_files_that_are_no_journal_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text(
        "not a database, but long enough to have a header of a hundred bytes, which is read first" * 2
    )
    with pytest.raises(ReplayError, match=r"notes\.txt.*no journal"):
        ReplayBuffer(text)
    assert text.read_text().startswith("not a database")

    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE groups (name TEXT)")
    connection.close()
    with pytest.raises(ReplayError, match=r"other\.sqlite has format 0"):
        ReplayBuffer(other)

    with pytest.raises(ReplayError, match="its folder must exist"):
        ReplayBuffer(tmp_path / "missing" / "replay.sqlite")


def test_a_damaged_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        buffer.put(group("step-7"))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE groups SET payload = x'c1'")
    connection.commit()
    connection.close()
    with ReplayBuffer(path) as buffer, pytest.raises(ReplayError, match=r"'step-7'.*can't be decoded"):
        buffer.lease(1)


@pytest.mark.parametrize("roots", [0, -1])
def test_leasing_nothing_is_an_error(buffer: ReplayBuffer, roots: int) -> None:
    with pytest.raises(ReplayError, match=f"{roots} root episodes"):
        buffer.lease(roots)


def test_staleness_looks_at_the_oldest_token_of_each_record() -> None:
    groups = [
        group("a", 1, record("5", 5), record("4 then 5", 4, 5)),
        group("b", 1, record("3 then 5", 3, 5)),
    ]
    # Policy 5 is trained; lags are 0, 1 and 2.
    assert _fresh(groups, 5, 0) == (["5"], 2)
    assert _fresh(groups, 5, 1) == (["5", "4 then 5"], 1)
    assert _fresh(groups, 5, 2) == (["5", "4 then 5", "3 then 5"], 0)


def _fresh(groups: list[RolloutGroup], version: int, max_staleness: int) -> tuple[list[str], int]:
    records, dropped = fresh_records(groups, version, max_staleness)
    return [record.id for record in records], dropped


class Journal(RuleBasedStateMachine):
    """Against a model of plain lists: arrival order, who holds what until when, what was trained."""

    names = st.sampled_from("abcdefgh")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.generation = 0
        self.clock = Clock()
        self.buffer = self.open()
        self.arrived: dict[str, int] = {}  # id -> roots, in order of arrival
        self.version = 0
        self.forgotten = 0  # up to which version
        self.trained: dict[str, int] = {}  # id -> version
        self.state: bytes | None = None
        self.held: dict[str, tuple[list[str], float]] = {}  # lease -> ids, deadline

    def open(self) -> ReplayBuffer:
        return ReplayBuffer(self.path, lease_seconds=60, clock=self.clock)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.generation}.sqlite"

    def available(self) -> list[str]:
        held = {name for names, deadline in self.held.values() if deadline > self.clock.now for name in names}
        return [name for name in self.arrived if name not in held and name not in self.trained]

    @rule(name=names, roots=st.integers(1, 3))
    def put(self, name: str, roots: int) -> None:
        state = f"{name}{roots}".encode() if roots > 1 else None
        assert self.buffer.put(group(name, roots), state) == (name not in self.arrived)
        self.arrived.setdefault(name, roots)
        self.state = state or self.state

    @rule(roots=st.integers(1, 6))
    def lease(self, roots: int) -> None:
        lease = self.buffer.lease(roots)
        names = self.available()
        if sum(self.arrived[name] for name in names) < roots:
            assert lease is None
            return
        assert lease is not None
        got = ids(lease)
        assert got == names[: len(got)]
        assert sum(self.arrived[name] for name in got) >= roots > sum(self.arrived[name] for name in got[:-1])
        self.held = {key: held for key, held in self.held.items() if not set(held[0]) & set(got)}
        self.held[lease.id] = (got, self.clock.now + 60)

    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        if self.held:
            lease = data.draw(st.sampled_from(sorted(self.held)))
            self.version += 1
            self.buffer.ack(lease, self.version)
            self.trained.update(dict.fromkeys(self.held.pop(lease)[0], self.version))
            with pytest.raises(ReplayError):
                self.buffer.ack(lease, self.version)

    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        """Not always of the newest version: the last few are kept, and only what led to the oldest is forgotten."""
        self.forgotten = data.draw(st.integers(self.forgotten, self.version))
        self.buffer.forget(self.forgotten)

    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        """The learner died, and goes on from a checkpoint."""
        self.version = data.draw(st.integers(self.forgotten, self.version))
        again = {name for name, version in self.trained.items() if version > self.version}
        assert self.buffer.rewind(self.version) == len(again)
        self.trained = {name: version for name, version in self.trained.items() if name not in again}
        self.held = {}

    @rule()
    def go_back_too_far(self) -> None:
        if self.forgotten and self.forgotten in self.trained.values():
            with pytest.raises(ReplayError, match="newer checkpoint"):
                self.buffer.rewind(self.forgotten - 1)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            lease = data.draw(st.sampled_from(sorted(self.held)))
            self.buffer.release(lease)
            del self.held[lease]

    @rule(seconds=st.sampled_from([1, 30, 60]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def close_and_reopen(self) -> None:
        self.buffer.close()
        self.reopen()

    @rule()
    def crash_and_reopen(self) -> None:
        """What a killed process leaves is the files as they are, the write-ahead log unmerged."""
        crashed = self.path
        self.generation += 1
        for suffix in ("", "-wal"):
            if (source := crashed.with_name(crashed.name + suffix)).exists():
                shutil.copy(source, self.path.with_name(self.path.name + suffix))
        self.buffer.close()
        self.reopen()

    def reopen(self) -> None:
        self.buffer = self.open()
        self.held = {lease: (names, self.clock.now) for lease, (names, _) in self.held.items()}

    @invariant()
    def nothing_is_lost_or_trained_twice(self) -> None:
        assert self.buffer.state() == self.state
        counts = self.buffer.counts()
        assert counts.queued == len(self.available())
        assert counts.acked == len(self.trained)
        assert counts.queued + counts.leased + counts.acked == len(self.arrived)
        assert counts.roots == sum(self.arrived[name] for name in self.available())

    def teardown(self) -> None:
        self.buffer.close()
        shutil.rmtree(self.folder)


Journal.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestJournal = Journal.TestCase
