"""What a token counts for in its step: the denominators of a loss, over the whole step and never a part of it.

All of a record's tokens weigh the same, so these functions give one number a record; its masked tokens weigh
nothing. A record without a trained token counts in no denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfplay_ray.loss_settings import Normalization
from selfplay_ray.types import TrainingRecord


def token_weights(
    records: Sequence[TrainingRecord],
    normalization: Normalization,
    *,
    max_tokens: int,
    role_weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The weight of each trained token of each of a step's ``records``, by record id.

    Without ``role_weights`` the step's loss is one mean. With them every role is an objective with a mean of its
    own, over its own tokens, and the loss is Σ weight(role) × mean(role): a proposer that speaks once for each
    eight solvers isn't drowned by them. A role not named in them weighs 1, one that weighs 0 isn't trained.
    ``max_tokens`` is the constant normalization's.
    """
    if not role_weights:
        return _normalized(records, normalization, max_tokens)
    by_role: dict[str, list[TrainingRecord]] = {}
    for record in records:
        by_role.setdefault(record.role_id, []).append(record)
    return {
        id: role_weights.get(role, 1.0) * weight
        for role, own in by_role.items()
        for id, weight in _normalized(own, normalization, max_tokens).items()
    }


def token_mean(records: Sequence[TrainingRecord]) -> dict[str, float]:
    """1 / (the step's trained tokens): all tokens alike, long records more than short ones (DAPO, eq. 8)."""
    tokens = sum(map(trained_tokens, records))
    return {record.id: 1 / max(tokens, 1) for record in records}


def sequence_mean(records: Sequence[TrainingRecord]) -> dict[str, float]:
    """1 / (records × the record's trained tokens): all records alike (GRPO, arXiv:2402.03300, eq. 3; GSPO, eq. 5).

    A token of a long record counts less, which spares long failures: lengths grow (Dr. GRPO, section 3.1).
    """
    counted = sum(trained_tokens(record) > 0 for record in records)
    return {record.id: 1 / max(counted * trained_tokens(record), 1) for record in records}


def constant_mean(records: Sequence[TrainingRecord], max_tokens: int) -> dict[str, float]:
    """1 / (records × ``max_tokens``): all tokens alike, whatever else is long (Dr. GRPO, arXiv:2503.20783).

    ``max_tokens`` is the longest a completion may be. Neither a record's length nor the step's total bears on a
    token, so the gradient isn't biased by either.
    """
    counted = sum(trained_tokens(record) > 0 for record in records)
    return {record.id: 1 / max(counted * max_tokens, 1) for record in records}


def trained_tokens(record: TrainingRecord) -> int:
    """How many of its tokens are trained on."""
    return sum(record.action_mask)


def _normalized(
    records: Sequence[TrainingRecord], normalization: Normalization, max_tokens: int
) -> dict[str, float]:
    if normalization == "token":
        return token_mean(records)
    if normalization == "sequence":
        return sequence_mean(records)
    return constant_mean(records, max_tokens)
