"""Is there enough to train on, and if not, why."""

from __future__ import annotations

from dataclasses import replace

from selfplay_ray.training.active_sampling import trainable, why_nothing
from selfplay_ray.types import RoleStats, RolloutGroup


def test_what_can_be_trained_on(record):
    records = [
        record("a", [1], [2, 3]),
        record("b", [1], [2, 3], advantage=0.0),
        record("c", [1], [2, 3], mask=[False, False]),
    ]
    assert trainable(records, every=False) == 1
    assert trainable(records, every=True) == 2
    assert trainable([], every=True) == 0


def test_the_reasons_are_told_with_their_numbers(record):
    flat = [replace(record(name, [1], [2], advantage=0.0), reward=0.5) for name in "abc"]
    group = RolloutGroup("g", 2, tuple(flat), {"Solver": RoleStats(4, 0.5, 0.0)}, {"episodes/failed": 1.0})
    assert why_nothing([group, group], flat, 3) == (
        "4 root episodes left nothing to train on: 2 episodes failed; 3 completions were sampled too many versions "
        "ago; 3 completions had an advantage of 0, as where all rewards of a group are equal: Solver 0.5 (± 0, 8)"
    )
    unread = RolloutGroup("g", 2, (), {}, {"credit/unscored": 4.0})
    assert why_nothing([unread], [], 0) == (
        "2 root episodes left nothing to train on: nobody could tell 4 times what a role was worth"
    )
    silent = RolloutGroup("g", 2, (), {}, {})
    assert "no trainable role has said anything" in why_nothing([silent], [], 0)
