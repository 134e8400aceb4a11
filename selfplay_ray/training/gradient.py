"""The gradient of a step: its micro-batches one after the other, summed, with memory flat in their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from selfplay_ray.lora import arrays_by_path
from selfplay_ray.training.forward import Forward
from selfplay_ray.training.loss import Loss
from selfplay_ray.training.micro_batch import MicroBatch

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What a step saw of every token it trained, [tokens], in the order of its micro-batches.

    ``version`` is the oldest among its record's; the rest is as in ``LossOutput``.
    """

    ratio: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    clipped: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    mismatch_kl: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    behaviour_logprob: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    version: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class StepGradient:
    """The summed loss of a step and its gradient by parameter path, neither yet divided by the tokens."""

    loss: float
    gradients: dict[str, mx.array]
    tokens: TokenTrace


def step_gradient(
    model: nn.Module, batches: Sequence[MicroBatch], loss: Loss, forward: Forward
) -> StepGradient:
    """Run ``batches`` in order and sum the gradients of ``model``'s trainable parameters, evaluated."""

    def objective(batch: MicroBatch) -> tuple[mx.array, ...]:
        logprobs = forward(model, batch).logprobs
        arguments = (batch.behaviour_logprobs, batch.advantages, batch.mask)
        return loss(logprobs, *map(mx.array, arguments))

    value_and_grad = nn.value_and_grad(model, objective)
    gradients: dict[str, mx.array] = {}
    total, traces = 0.0, []
    for batch in batches:
        (value, *statistics), tree = value_and_grad(batch)
        fresh = arrays_by_path(tree)
        gradients = {name: gradients[name] + g if gradients else g for name, g in fresh.items()}
        mx.eval(value, statistics, gradients)  # here, or every micro-batch's graph stays in memory
        total += value.item()
        traces.append(_trace(batch, statistics))
    return StepGradient(total, gradients, _joined(traces))


def _trace(batch: MicroBatch, statistics: Sequence[mx.array]) -> TokenTrace:
    ratio, clipped, mismatch_kl = (np.array(values)[batch.mask] for values in statistics)
    return TokenTrace(
        ratio, clipped, mismatch_kl, batch.behaviour_logprobs[batch.mask], batch.versions[batch.mask]
    )


def _joined(traces: Sequence[TokenTrace]) -> TokenTrace:
    if not traces:
        return TokenTrace()
    return TokenTrace(
        ratio=np.concatenate([trace.ratio for trace in traces]),
        clipped=np.concatenate([trace.clipped for trace in traces]),
        mismatch_kl=np.concatenate([trace.mismatch_kl for trace in traces]),
        behaviour_logprob=np.concatenate([trace.behaviour_logprob for trace in traces]),
        version=np.concatenate([trace.version for trace in traces]),
    )
