"""The replay buffer: a journal of rollout groups on disk, leased to the learner and trained at most once.

A group is *queued* when it is put, *leased* while a learner works on it, and *acked* once it was trained on.
A lease that runs out makes its groups available again. An acked group is kept until a checkpoint holds what was
learned from it: a learner that goes on from an older one trains on the very same groups again (``rewind``). Then
its payload is deleted, and its id remembered, so that the same group, sent again, is refused.

With every group goes the state of whoever put it, in one transaction: what is in the journal and what its maker
knows of it can't come apart.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from selfplay_ray.errors import ReplayError, SelfPlayError
from selfplay_ray.types import RolloutGroup, TrainingRecord

LEASE_SECONDS = 600.0
BUSY_SECONDS = 1.0  # how long opening waits for another process to let go of the journal
FORMAT = 2

# `payload` stands last, so that scanning the other columns never reads it.
SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    roots INTEGER NOT NULL,
    lease TEXT,
    deadline REAL,
    trained INTEGER,
    payload BLOB
);
CREATE INDEX IF NOT EXISTS untrained ON groups (arrival) WHERE trained IS NULL;
CREATE INDEX IF NOT EXISTS kept ON groups (trained) WHERE trained IS NOT NULL AND payload IS NOT NULL;
CREATE INDEX IF NOT EXISTS leases ON groups (lease);
CREATE TABLE IF NOT EXISTS state (only INTEGER PRIMARY KEY CHECK (only = 0), content BLOB NOT NULL);
"""
# `trained` is the version of the policy that was trained on the group: acked, where there is one.

AVAILABLE = "trained IS NULL AND (lease IS NULL OR deadline <= :now)"


@dataclass(frozen=True, slots=True)
class Lease:
    """Groups handed to one learner, to be acked under ``id`` once it has trained on all of them."""

    id: str
    groups: tuple[RolloutGroup, ...]


@dataclass(frozen=True, slots=True)
class ReplayCounts:
    """How many groups are queued, leased and acked; the root episodes in the queued and in the acked ones."""

    queued: int
    leased: int
    acked: int
    roots: int
    acked_roots: int


class ReplayBuffer:
    """A first-in first-out journal of rollout groups in SQLite; what was put survives any kill.

    Every change is one transaction in a write-ahead log that is synced before the call returns
    (``synchronous=FULL``). A killed process alone would forgive ``NORMAL``, but a machine that loses power
    would not, and the sync costs a fraction of a millisecond where it was measured (Linux), for the
    few groups a second that a run needs.

    One connection, for one thread at a time; one process at a time, which holds the file's lock.

    Args:
        path: the journal's file, made if missing; None keeps everything in memory.
        lease_seconds: how long a lease holds before its groups may be leased again.
        requeue: whether groups leased by an earlier process are available at once (a run that was resumed,
            its learner gone) or when their lease runs out (only the queue was restarted, and the learner
            may yet ack).
        clock: seconds since the epoch; leases outlive the process, so no monotonic clock will do.

    Raises:
        ReplayError: the file is no journal, is in use by another process, or can't be written.
    """

    def __init__(
        self,
        path: Path | None,
        lease_seconds: float = LEASE_SECONDS,
        *,
        requeue: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if lease_seconds <= 0:
            raise ReplayError(f"lease_seconds is {lease_seconds}; a lease must last longer than 0 seconds")
        self._name = str(path) if path is not None else "in memory"
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(RolloutGroup)
        with self._sqlite_errors():
            # An async Ray actor is constructed in one thread and called in another.
            self._db = sqlite3.connect(
                path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._open(requeue)
        except ReplayError:
            self._db.close()
            raise

    def _open(self, requeue: bool) -> None:
        with self._sqlite_errors():
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        with self._transaction():
            self._check_format()
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
            if requeue:
                self._db.execute("UPDATE groups SET deadline = 0 WHERE trained IS NULL")

    def _check_format(self) -> None:
        """An empty file has version 0 and no tables; anything else must be a journal of ours."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != FORMAT and (version, tables) != (0, 0):
            raise ReplayError(
                f"replay journal {self._name} has format {version}, this version reads {FORMAT}; "
                "start a run under another name"
            )

    def put(self, groups: Sequence[RolloutGroup], state: bytes | None = None) -> int:
        """Journal ``groups`` and, in place of the one before, their maker's ``state``; how many of them are new.

        A group whose id was put before, trained or not, is not put again. Where none is new, this was said before, and
        the state stays as well: a later one may have come since.
        """
        rows = [(group.id, group.roots, self._encoder.encode(group)) for group in groups]
        with self._transaction():
            new = 0
            for row in rows:
                new += self._db.execute(
                    "INSERT INTO groups (id, roots, payload) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    row,
                ).rowcount
            if new and state is not None:
                self._db.execute("INSERT OR REPLACE INTO state (only, content) VALUES (0, ?)", (state,))
            return new

    def state(self) -> bytes | None:
        """The state that came with the group put last; None before any did."""
        with self._sqlite_errors():
            row = self._db.execute("SELECT content FROM state").fetchone()
        return None if row is None else bytes(row[0])

    def lease(self, roots: int, *, or_fewer: bool = False, lease_id: str = "") -> Lease | None:
        """The oldest available groups that together hold at least ``roots`` root episodes; or, with ``or_fewer``, all
        there are.

        None, and nothing leased, while there are not enough; with ``or_fewer``, where there is none. Asked again under
        the ``lease_id`` of a lease that was given and not acked, it is the same lease, for as long again: who has
        missed the answer may ask for it once more. An empty one is made up.

        Raises:
            ReplayError: ``roots`` is less than 1, or a group can't be decoded.
        """
        if roots < 1:
            raise ReplayError(f"asked to lease {roots} root episodes; ask for 1 or more")
        now = self._clock()
        with self._transaction():
            arrivals = self._given(lease_id) or self._oldest(roots, now, or_fewer)
            if not arrivals:
                return None
            groups = tuple(self._payload(arrival) for arrival in arrivals)
            lease = Lease(lease_id or uuid.uuid4().hex, groups)
            self._assign(lease.id, arrivals, now + self._lease_seconds)
            return lease

    def _given(self, lease_id: str) -> list[int]:
        """Arrival numbers of the groups that the lease holds."""
        rows = self._db.execute(
            "SELECT arrival FROM groups WHERE lease = ? AND trained IS NULL ORDER BY arrival", (lease_id,)
        )
        return [arrival for (arrival,) in rows]

    def _oldest(self, roots: int, now: float, or_fewer: bool) -> list[int]:
        """Arrival numbers of the oldest available groups with ``roots`` roots; if there are not enough, of all there
        are with ``or_fewer``, or else []."""
        rows = self._db.execute(
            f"SELECT arrival, roots FROM groups WHERE {AVAILABLE} ORDER BY arrival",  # noqa: S608 -- a constant
            {"now": now},
        )
        arrivals: list[int] = []
        total = 0
        for arrival, count in rows:
            arrivals.append(arrival)
            total += count
            if total >= roots:
                return arrivals
        return arrivals if or_fewer else []

    def _payload(self, arrival: int) -> RolloutGroup:
        row = self._db.execute("SELECT id, payload FROM groups WHERE arrival = ?", (arrival,)).fetchone()
        try:
            return self._decoder.decode(row[1])
        except (msgspec.MsgspecError, SelfPlayError) as error:
            raise ReplayError(
                f"group {row[0]!r} in replay journal {self._name} can't be decoded ({error}); "
                "the file is damaged, start a run under another name"
            ) from error

    def _assign(self, lease_id: str, arrivals: Sequence[int], deadline: float) -> None:
        """Lease the groups, and dissolve whole the leases they ran out of.

        So a late ack finds all of its lease's groups still its own, or none.
        """
        for arrival in arrivals:
            self._db.execute(
                "UPDATE groups SET lease = NULL, deadline = NULL WHERE trained IS NULL"
                " AND lease = (SELECT lease FROM groups WHERE arrival = ?)",
                (arrival,),
            )
        self._db.executemany(
            "UPDATE groups SET lease = ?, deadline = ? WHERE arrival = ?",
            [(lease_id, deadline, arrival) for arrival in arrivals],
        )

    def ack(self, lease_id: str, version: int) -> None:
        """Policy ``version`` was trained on the lease's groups: they aren't handed out again. May be said twice.

        A lease that ran out may still be acked, as long as nobody else was handed its groups.

        Raises:
            ReplayError: the lease was acked for another version, or isn't one (any more).
        """
        with self._transaction():
            trained = self._trained(lease_id)
            if not trained:
                raise ReplayError(
                    f"lease {lease_id!r} is unknown: it was never given, was released, or ran out and its groups were "
                    "leased again; don't use what was trained on it, or raise lease_seconds"
                )
            if trained - {None, version}:
                raise self._acked_before(lease_id)
            self._db.execute("UPDATE groups SET trained = ? WHERE lease = ?", (version, lease_id))

    def forget(self, version: int) -> None:
        """A checkpoint of policy ``version`` is safe: forget what was in the groups that led there, not their names."""
        with self._transaction():
            self._db.execute(
                "UPDATE groups SET payload = NULL WHERE trained <= ? AND payload IS NOT NULL", (version,)
            )

    def rewind(self, version: int) -> int:
        """The learner is back at policy ``version``, and nobody else works on a lease: what was trained on since, or
        leased, is available again, in its old order. Returns how many groups were untrained so.

        Raises:
            ReplayError: groups that were trained on since have been forgotten; nothing has changed.
        """
        with self._transaction():
            lost = self._db.execute(
                "SELECT count(*) FROM groups WHERE trained > ? AND payload IS NULL", (version,)
            ).fetchone()[0]
            if lost:
                raise ReplayError(
                    f"replay journal {self._name} has forgotten {lost} groups that were trained on after version "
                    f"{version}; go on from a newer checkpoint"
                )
            untrained = self._db.execute("UPDATE groups SET trained = NULL WHERE trained > ?", (version,))
            self._db.execute("UPDATE groups SET lease = NULL, deadline = NULL WHERE trained IS NULL")
            return untrained.rowcount

    def release(self, lease_id: str) -> None:
        """The lease's groups were not trained on and are available again, in their old order. Of a lease that holds
        none, as when this is said twice, nothing is left to release.

        Raises:
            ReplayError: the lease was acked before.
        """
        with self._transaction():
            if self._trained(lease_id) - {None}:
                raise self._acked_before(lease_id)
            self._db.execute("UPDATE groups SET lease = NULL, deadline = NULL WHERE lease = ?", (lease_id,))

    def _trained(self, lease_id: str) -> set[int | None]:
        """The version that was trained on the lease's groups, None if none was; empty where it has no group."""
        rows = self._db.execute("SELECT DISTINCT trained FROM groups WHERE lease = ?", (lease_id,))
        return {version for (version,) in rows}

    @staticmethod
    def _acked_before(lease_id: str) -> ReplayError:
        return ReplayError(f"lease {lease_id!r} was acked before; its groups are trained once only")

    def counts(self) -> ReplayCounts:
        """What is in the journal now; groups whose lease has run out count as queued."""
        query = f"""
            SELECT total({AVAILABLE}),
                   total(trained IS NULL AND NOT ({AVAILABLE})),
                   total(trained IS NOT NULL),
                   total(roots * ({AVAILABLE})),
                   total(roots * (trained IS NOT NULL))
            FROM groups"""  # noqa: S608 -- a constant
        with self._sqlite_errors():
            row = self._db.execute(query, {"now": self._clock()}).fetchone()
        return ReplayCounts(*(int(value) for value in row))

    def close(self) -> None:
        """Let go of the file. Leases stay in it until another process opens it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block, on disk when it is left, or, if it raises, none of it."""
        with self._sqlite_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls back by itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ReplayError(f"replay journal {self._name}: {_advice(error)}") from error


def _advice(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", None):
        case sqlite3.SQLITE_BUSY:
            return "another process has it open; stop that one first"
        case sqlite3.SQLITE_FULL:
            return "the disk is full; free some space and resume the run"
        case sqlite3.SQLITE_CANTOPEN:
            return "the file can't be opened; its folder must exist and be writable"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return f"the file is damaged or no journal ({error}); start a run under another name"
        case _:
            return f"{error}"


def fresh_records(
    groups: Iterable[RolloutGroup], version: int, max_staleness: int
) -> tuple[list[TrainingRecord], int]:
    """The records that policy ``version`` may still train on, and how many others were dropped.

    A record is stale when the oldest policy that sampled a token of it lags more than ``max_staleness``
    versions behind. Records hold trainable completions only, so a frozen opponent's age never counts.
    """
    records = [record for group in groups for record in group.records]
    fresh = [record for record in records if version - record.policy_version <= max_staleness]
    return fresh, len(records) - len(fresh)
