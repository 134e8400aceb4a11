"""The replay queue against a model of plain lists, through crashes, lost answers and a learner that goes back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from length import LONG

from selfplay_ray.errors import ReplayError
from selfplay_ray.replay import Lease, ReplayBuffer, fresh_records
from selfplay_ray.types import PolicySpan, RolloutGroup, TrainingRecord

EXAMPLES, STEPS = (200, 50) if LONG else (40, 30)
LEASE_SECONDS = 60
MAX_STALENESS = 1


def record(name: str, version: int) -> TrainingRecord:
    """One token that policy ``version`` sampled."""
    return TrainingRecord(
        id=name,
        role_id="Solver",
        rollout_id=name,
        episode_type="solve",
        prompt_token_ids=(5,),
        completion_token_ids=(1,),
        logprobs=(-0.5,),
        action_mask=(True,),
        spans=(PolicySpan(0, 1, version),),
        temperature=1.0,
        reward=1.0,
        advantage=1.0,
    )


class Queue(RuleBasedStateMachine):
    """What has arrived in which order, who holds what until when, what was trained on by which version.

    An answer may be lost, whereupon the same is asked again, or much later by mistake.
    """

    names = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=3, unique=True)
    asked = st.integers(1, 2)
    """How often the same is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.generation = 0
        self.now = 1_000.0
        self.buffer = self.open(requeue=True)
        self.arrived: dict[str, int] = {}  # id -> roots, in order of arrival
        self.sampled: dict[str, int] = {}  # id -> the version that has sampled it
        self.version = 0
        self.forgotten = 0  # up to which version
        self.trained: dict[str, int] = {}  # id -> version
        self.records: dict[str, int] = {}  # id of a record that was trained on -> version
        self.puts = 0
        self.state: bytes | None = None
        self.last_put: tuple[list[RolloutGroup], bytes] | None = None
        self.leases = 0
        self.held: dict[str, tuple[Lease, float]] = {}  # by id, with its deadline

    def open(self, *, requeue: bool) -> ReplayBuffer:
        return ReplayBuffer(self.path, lease_seconds=LEASE_SECONDS, requeue=requeue, clock=lambda: self.now)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.generation}.sqlite"

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def available(self) -> list[str]:
        held = {
            group.id
            for lease, deadline in self.held.values()
            if deadline > self.now
            for group in lease.groups
        }
        return [name for name in self.arrived if name not in held and name not in self.trained]

    @rule(names=names, roots=st.integers(1, 3), lag=st.integers(0, 2), asked=asked)
    def put(self, names: list[str], roots: int, lag: int, asked: int) -> None:
        version = max(0, self.version - lag)
        groups = [RolloutGroup(name, roots, (record(name, version),), {}, {}) for name in names]
        new = [name for name in names if name not in self.arrived]
        self.puts += 1
        state = f"{self.puts}".encode()
        for time in range(asked):
            assert self.buffer.put(groups, state) == (0 if time else len(new))
        self.arrived.update(dict.fromkeys(new, roots))
        self.sampled.update(dict.fromkeys(new, version))
        if new:
            self.state, self.last_put = state, (groups, state)

    @rule()
    def put_what_was_put_long_ago(self) -> None:
        if self.last_put:
            assert self.buffer.put(*self.last_put) == 0

    @rule(roots=st.integers(1, 6), or_fewer=st.booleans(), asked=asked)
    def lease(self, roots: int, or_fewer: bool, asked: int) -> None:
        self.leases += 1
        name = f"lease-{self.leases}"
        lease = self.buffer.lease(roots, or_fewer=or_fewer, lease_id=name)
        for _ in range(asked - 1):
            assert self.buffer.lease(roots, or_fewer=or_fewer, lease_id=name) == lease
        names = self.available()
        total = sum(self.arrived[name] for name in names)
        if not names or (total < roots and not or_fewer):
            assert lease is None
            return
        assert lease is not None
        got = [group.id for group in lease.groups]
        assert got == names[: len(got)]
        assert sum(self.arrived[name] for name in got) >= min(roots, total)
        assert roots > sum(self.arrived[name] for name in got[:-1])
        self.held = {
            key: (other, deadline)
            for key, (other, deadline) in self.held.items()
            if not {group.id for group in other.groups} & set(got)
        }
        self.held[name] = lease, self.now + LEASE_SECONDS

    @rule(data=st.data(), asked=asked)
    def train(self, data: st.DataObject, asked: int) -> None:
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        lease, _ = self.held.pop(name)
        fresh, dropped = fresh_records(lease.groups, self.version, MAX_STALENESS)
        assert all(self.version - self.sampled[one.id] <= MAX_STALENESS for one in fresh)
        assert len(fresh) + dropped == sum(len(group.records) for group in lease.groups)
        assert not {one.id for one in fresh} & self.records.keys()
        self.version += 1
        for _ in range(asked):
            self.buffer.ack(name, self.version)
        self.trained.update({group.id: self.version for group in lease.groups})
        self.records.update({one.id: self.version for one in fresh})
        with pytest.raises(ReplayError, match="trained once only"):
            self.buffer.ack(name, self.version + 1)

    @rule(data=st.data(), asked=asked)
    def checkpoint(self, data: st.DataObject, asked: int) -> None:
        """Not always of the newest version: the last few are kept, and only what led to the oldest is forgotten."""
        self.forgotten = data.draw(st.integers(self.forgotten, self.version))
        for _ in range(asked):
            self.buffer.forget(self.forgotten)

    @rule(data=st.data(), asked=asked)
    def learner_goes_back(self, data: st.DataObject, asked: int) -> None:
        """It was lost, and another goes on from a checkpoint."""
        self.version = data.draw(st.integers(self.forgotten, self.version))
        again = {name for name, version in self.trained.items() if version > self.version}
        for time in range(asked):
            assert self.buffer.rewind(self.version) == (0 if time else len(again))
        self.trained = {name: version for name, version in self.trained.items() if name not in again}
        self.records = {name: version for name, version in self.records.items() if version <= self.version}
        self.held = {}

    @rule()
    def go_back_too_far(self) -> None:
        if self.forgotten and self.forgotten in self.trained.values():
            with pytest.raises(ReplayError, match="newer checkpoint"):
                self.buffer.rewind(self.forgotten - 1)

    @rule(data=st.data(), asked=asked)
    def release(self, data: st.DataObject, asked: int) -> None:
        if self.held:
            name = data.draw(st.sampled_from(sorted(self.held)))
            for _ in range(asked):
                self.buffer.release(name)
            del self.held[name]

    @rule(seconds=st.sampled_from([1, 30, 60]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(resumed=st.booleans())
    def close_and_reopen(self, resumed: bool) -> None:
        self.buffer.close()
        self.reopen(resumed)

    @rule(resumed=st.booleans())
    def crash(self, resumed: bool) -> None:
        self.crash_and_reopen(resumed, self.log.read_bytes() if self.log.exists() else b"")

    def crash_and_reopen(self, resumed: bool, log: bytes) -> None:
        """What a killed process leaves is the files as they are, the write-ahead log unmerged."""
        crashed = self.path
        self.generation += 1
        shutil.copy(crashed, self.path)
        self.log.write_bytes(log)
        self.buffer.close()
        self.reopen(resumed)

    @rule()
    def crash_with_a_torn_tail(self) -> None:
        """The log's last bytes were never written whole: it is as if what they were of had never been asked for."""
        size = self.log.stat().st_size if self.log.exists() else 0
        name = f"torn-{self.generation}"
        self.buffer.put([RolloutGroup(name, 1, (), {}, {})], name.encode())
        content = self.log.read_bytes()
        if len(content) <= size:  # SQLite has begun the log anew, and this is not at its end
            self.arrived[name], self.sampled[name], self.state = 1, 0, name.encode()
            return
        self.crash_and_reopen(resumed=False, log=content[:-7])

    def reopen(self, resumed: bool) -> None:
        self.buffer = self.open(requeue=resumed)
        if resumed:
            self.held = {name: (lease, self.now) for name, (lease, _) in self.held.items()}

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
        shutil.rmtree(self.folder, ignore_errors=True)


Queue.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestQueue = Queue.TestCase
