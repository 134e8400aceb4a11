"""The baseline of the training step's benchmarks: every record a whole sequence, logits at every position.

This is what trainers commonly do, mlx-lm's own among them: what comes before a completion is repeated for each,
and masked out of the loss. Only records of one length run together, so that no padding counts against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from selfplay_ray.logprobs import log_normalizer
from selfplay_ray.lora import arrays_by_path
from selfplay_ray.training.losses import LossInputs, Objective
from selfplay_ray.types import TrainingRecord

TokenLosses = Callable[[mx.array, mx.array], mx.array]


def whole_sequences_gradient(
    model: nn.Module,
    batches: Sequence[Sequence[TrainingRecord]],
    loss: Objective,
    token_losses: TokenLosses = nn.losses.cross_entropy,
) -> dict[str, mx.array]:
    """The summed gradient of ``batches`` by parameter path; each is one graph, the records of all its lengths in it.

    All tokens of the completions count, at a temperature of 1.
    """

    def objective(records: Sequence[TrainingRecord]) -> mx.array:
        totals = [_loss(model, group, loss, token_losses) for group in _by_length(records)]
        return mx.stack(totals).sum()

    gradients: dict[str, mx.array] = {}
    for records in batches:
        _, tree = nn.value_and_grad(model, objective)(records)
        fresh = arrays_by_path(tree)
        gradients = {name: gradients[name] + g if gradients else g for name, g in fresh.items()}
        mx.eval(gradients)
    return gradients


def exact_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """MLX's is off by up to 2e-4 over a large vocabulary on a CPU, and so are the gradients of a ratio."""
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_normalizer(logits) - chosen


def _loss(
    model: nn.Module, records: Sequence[TrainingRecord], loss: Objective, token_losses: TokenLosses
) -> mx.array:
    tokens = mx.array([record.input_ids for record in records])
    completion = len(records[0].completion_token_ids)
    logprobs = -token_losses(model(tokens[:, :-1]), tokens[:, 1:])[:, -completion:]
    advantages = mx.array([[record.advantage] for record in records])
    behaviour = mx.array([record.logprobs for record in records])
    return loss(LossInputs(logprobs, behaviour, advantages, mx.ones(logprobs.shape, mx.bool_))).total


def _by_length(records: Sequence[TrainingRecord]) -> list[list[TrainingRecord]]:
    groups: dict[tuple[int, int], list[TrainingRecord]] = {}
    for record in records:
        groups.setdefault((len(record.input_ids), len(record.completion_token_ids)), []).append(record)
    return list(groups.values())


def relative_difference(ours: dict[str, mx.array], theirs: dict[str, mx.array]) -> float:
    """The largest |difference| of a number in units of its tensor's largest, over all tensors."""
    return max(
        float(np.abs(np.array(ours[name]) - np.array(value)).max() / np.abs(np.array(value)).max())
        for name, value in theirs.items()
    )
