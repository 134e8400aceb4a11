"""When a step has too little to learn from: play more for it, up to a bound, then say why there was nothing.

Yu et al. 2025 (DAPO, arXiv:2503.14476, section 3.2) sample on until a batch is full of groups whose rewards differ.
Here a step asks for another whole batch, so that groups stay whole, and keeps what it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfplay_ray.runlog.metrics import pooled_metrics, pooled_rewards
from selfplay_ray.types import RolloutGroup, TrainingRecord


def trainable(records: Sequence[TrainingRecord], *, every: bool) -> int:
    """How many ``records`` have a gradient; ``every`` says that one with an advantage of 0 has one as well."""
    return sum(any(record.action_mask) and (every or record.advantage != 0) for record in records)


def why_nothing(groups: Sequence[RolloutGroup], records: Sequence[TrainingRecord], stale: int) -> str:
    """Why nothing in ``groups`` can be trained on, of which ``records`` are fresh and ``stale`` were too old."""
    roots = sum(group.roots for group in groups)
    counts = pooled_metrics(groups)
    failed, unscored = (int(counts.get(name, 0)) for name in ("episodes/failed", "credit/unscored"))
    reasons = []
    if failed:
        reasons.append(f"{failed} episodes failed")
    if unscored:
        reasons.append(f"nobody could tell {unscored} times what a role was worth")
    if stale:
        reasons.append(f"{stale} completions were sampled too many versions ago")
    if records:
        rewards = ", ".join(
            f"{role} {stats.mean:.3g} (± {stats.std:.2g}, {stats.count})"
            for role, stats in pooled_rewards(groups).items()
        )
        reasons.append(
            f"{len(records)} completions had an advantage of 0, as where all rewards of a group are equal: {rewards}"
        )
    if not reasons:
        reasons.append("no trainable role has said anything in an episode that is trained on")
    return f"{roots} root episodes left nothing to train on: {'; '.join(reasons)}"
