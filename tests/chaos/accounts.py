"""What must be true of a run's journal, numbers and rollouts, whoever was lost on the way."""

from __future__ import annotations

import sqlite3

import msgspec

from selfplay_ray.actors.replay_queue import ReplayQueue
from selfplay_ray.config import RunConfig
from selfplay_ray.replay import fresh_records
from selfplay_ray.runlog.folder import RunLog, read_metrics
from selfplay_ray.runlog.rollouts import read_rollouts
from selfplay_ray.types import RolloutGroup


class UnforgettingQueue(ReplayQueue):
    """Keeps also what was in groups that a checkpoint knows of, to be looked at in the end."""

    async def forget(self, version: int) -> None:
        pass


def steps_taken(log: RunLog) -> int:
    """How many have been logged, some perhaps twice."""
    return len(log.metrics_path.read_bytes().splitlines()) if log.metrics_path.exists() else 0


def trained_groups(log: RunLog) -> dict[int, list[RolloutGroup]]:
    """What was acknowledged, by the version that was trained on it."""
    with sqlite3.connect(log.replay_path) as journal:
        rows = journal.execute("SELECT trained, payload FROM groups ORDER BY arrival").fetchall()
    journal.close()
    groups: dict[int, list[RolloutGroup]] = {}
    for version, payload in rows:
        assert version is not None
        groups.setdefault(version, []).append(msgspec.msgpack.decode(payload, type=RolloutGroup))
    return groups


def assert_nothing_was_lost_or_trained_twice(
    log: RunLog, config: RunConfig, group_size: int, children: int
) -> None:
    """Of a run with an :class:`UnforgettingQueue`, whose batches are whole groups, of trees with so many children."""
    history = read_metrics(log.metrics_path)
    assert [metrics.step for metrics in history] == list(range(1, config.num_steps + 1))
    assert steps_taken(log) == config.num_steps  # each was logged once
    by_version = trained_groups(log)
    assert sorted(by_version) == list(range(1, config.num_steps + 1))
    ids = [record.id for groups in by_version.values() for group in groups for record in group.records]
    assert len(ids) == len(set(ids))
    for metrics in history:
        groups = by_version[metrics.version]
        assert [group.roots for group in groups] == [group_size] * len(groups)
        fresh, stale = fresh_records(groups, metrics.version - 1, config.max_staleness)
        numbers = metrics.flat()
        trained = numbers["train/records"] + numbers["train/skipped_zero_advantage"]
        assert (trained, metrics.dropped_stale) == (len(fresh), stale)
    roots = [row.tree for row in read_rollouts(log.rollouts_path)]
    assert len(roots) == len({root.id for root in roots}) == config.batch_size * config.num_steps
    assert all(len(root.children) == children for root in roots if root.error is None)
    assert sum(root.error is not None for root in roots) == 0
