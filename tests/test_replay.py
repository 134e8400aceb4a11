"""The replay buffer: nothing that was put is lost, nothing is trained on twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import files_of_at_most

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
        assert buffer.put([original])
    with ReplayBuffer(tmp_path / "replay.sqlite") as buffer:
        assert leased(buffer, 3).groups == (original,)


def test_a_group_that_nobody_could_score_comes_out_as_well_with_its_count(tmp_path: Path) -> None:
    unread = RolloutGroup("unread", 2, (), {}, {"credit/unscored": 4.0})
    with ReplayBuffer(tmp_path / "journal.sqlite") as buffer:
        buffer.put([unread])
        assert leased(buffer, 2).groups == (unread,)


def test_oldest_first_until_the_roots_suffice(buffer: ReplayBuffer) -> None:
    for name, roots in [("a", 2), ("b", 3), ("c", 4)]:
        buffer.put([group(name, roots)])
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
        buffer.put([group(name, 2)])
    assert buffer.lease(9) is None
    assert ids(leased_or_fewer(buffer, 3)) == ["a", "b"]
    assert ids(leased_or_fewer(buffer, 9)) == ["c"]


def test_who_missed_the_answer_is_given_the_same_lease_again(buffer: ReplayBuffer, clock: Clock) -> None:
    for name in "abc":
        buffer.put([group(name)])
    first = buffer.lease(2, lease_id="mine")
    clock.now += 50
    assert buffer.lease(2, lease_id="mine") == first
    clock.now += 50
    assert buffer.counts().leased == 2  # for as long again
    assert buffer.lease(1, lease_id="other").groups == (group("c"),)  # type: ignore[union-attr]
    buffer.ack("mine", 1)
    assert buffer.lease(1, lease_id="mine") is None


def test_a_put_that_comes_again_changes_nothing(buffer: ReplayBuffer) -> None:
    assert buffer.put([group("a"), group("b")], b"after b") == 2
    assert buffer.put([group("c")], b"after c") == 1
    assert buffer.put([group("a"), group("b")], b"after b") == 0
    assert buffer.state() == b"after c"
    assert buffer.put([group("c"), group("d")], b"after d") == 1
    assert buffer.state() == b"after d"


def leased_or_fewer(buffer: ReplayBuffer, roots: int) -> Lease:
    lease = buffer.lease(roots, or_fewer=True)
    assert lease is not None
    return lease


def test_a_group_put_again_is_refused_queued_leased_or_trained(buffer: ReplayBuffer) -> None:
    assert buffer.put([group("a")])
    assert not buffer.put([group("a")])
    lease = leased(buffer, 1)
    assert not buffer.put([group("a")])
    buffer.ack(lease.id, 1)
    assert not buffer.put([group("a")])
    assert buffer.lease(1) is None


def test_acking_for_another_version_and_what_was_never_leased_raise(buffer: ReplayBuffer) -> None:
    buffer.put([group("a")])
    lease = leased(buffer, 1)
    buffer.ack(lease.id, 1)
    buffer.ack(lease.id, 1)  # said again, because the answer was lost
    with pytest.raises(ReplayError, match=f"{lease.id}.*acked before"):
        buffer.ack(lease.id, 2)
    with pytest.raises(ReplayError, match=f"{lease.id}.*acked before"):
        buffer.release(lease.id)
    with pytest.raises(ReplayError, match="'no-such-lease' is unknown"):
        buffer.ack("no-such-lease", 1)


def test_released_groups_keep_their_place_in_line(buffer: ReplayBuffer) -> None:
    buffer.put([group("a")])
    buffer.put([group("b")])
    lease = leased(buffer, 1)
    buffer.release(lease.id)
    buffer.release(lease.id)
    assert ids(leased(buffer, 2)) == ["a", "b"]
    with pytest.raises(ReplayError, match="was released"):
        buffer.ack(lease.id, 1)


def test_an_expired_lease_goes_back_and_can_no_longer_be_acked(buffer: ReplayBuffer, clock: Clock) -> None:
    buffer.put([group("a")])
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
    buffer.put([group("a")])
    lease = leased(buffer, 1)
    clock.now += 1_000
    buffer.ack(lease.id, 1)
    assert buffer.lease(1) is None


def test_an_expired_lease_is_taken_over_whole_or_not_at_all(buffer: ReplayBuffer, clock: Clock) -> None:
    """Else a late ack of [a, b] would train b a second time when only a had been leased again."""
    buffer.put([group("a")])
    buffer.put([group("b")])
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
            buffer.put([group(name)])
        buffer.ack(leased(buffer, 1).id, 1)
        leased(buffer, 1)
    with ReplayBuffer(path) as buffer:
        assert buffer.counts() == ReplayCounts(queued=2, leased=0, acked=1, roots=2, acked_roots=1)
        assert not buffer.put([group("a")])
        assert ids(leased(buffer, 2)) == ["b", "c"]


def test_after_reopening_a_lease_may_still_be_acked_until_its_groups_are_leased_again(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        buffer.put([group("a")])
        lease = leased(buffer, 1)
    with ReplayBuffer(path) as buffer:
        buffer.ack(lease.id, 1)
        assert buffer.counts().acked == 1


def test_a_restarted_queue_honours_the_leases_it_had_given(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path, lease_seconds=60, clock=clock) as buffer:
        buffer.put([group("a")])
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
            buffer.put([one])
        for version in (1, 2, 3):
            buffer.ack(leased(buffer, 1).id, version)
        buffer.forget(1)  # the checkpoint of version 1 is written
        leased(buffer, 1)  # and the learner dies
    with ReplayBuffer(path) as buffer:
        assert buffer.rewind(1) == 2
        assert list(leased(buffer, 3).groups) == originals[1:]
        assert not buffer.put(originals[:1])
        with pytest.raises(ReplayError, match=r"forgotten 1 groups .* after version 0"):
            buffer.rewind(0)


def test_a_group_and_the_state_of_its_maker_are_kept_together(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    with ReplayBuffer(path) as buffer:
        assert buffer.state() is None
        buffer.put([group("a")], b"after a")
        buffer.put([group("b")], b"after b")
        buffer.put([group("c")])
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
    buffer.put([RolloutGroup(name, 1, (), {{}}, {{}})])
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
            buffer.put([group(str(i), 1, record(str(i), *([1] * 2_000)))], state=bytes(1_000))
            buffer.ack(leased(buffer, 1).id, i)
            buffer.forget(i)
    one_group = 2_000 * (9 + 1 + 1)  # at least a float, a mask and a token id each
    assert path.stat().st_size < 20 * one_group


def test_where_the_disk_is_full_nothing_is_lost_that_was_put(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    many = [group(str(i), 1, record(str(i), *([1] * 500))) for i in range(100)]
    put = []

    def put_all() -> None:
        for one in many:
            buffer.put([one], one.id.encode())
            put.append(one)

    with ReplayBuffer(path) as buffer:
        with files_of_at_most(200_000), pytest.raises(ReplayError, match="disk"):
            put_all()
        assert 0 < len(put) < len(many)
        assert buffer.counts().queued == len(put)
    with ReplayBuffer(path) as buffer:  # there is space again
        assert buffer.state() == put[-1].id.encode()
        assert buffer.put(many, b"all") == len(many) - len(put)
        assert leased(buffer, len(many)).groups == tuple(many)


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
        buffer.put([group("step-7")])
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
