"""The gradient of a step: its micro-batches one after the other, summed, with memory flat in their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn

from selfplay_ray.lora import arrays_by_path
from selfplay_ray.training.forward import Forward
from selfplay_ray.training.losses import LossInputs, Objective
from selfplay_ray.training.micro_batch import MicroBatch

ROUNDING = 1e-3
"""Nats by which sampler and learner may differ about a token of one and the same policy, and mean the same."""

FloatArray = npt.NDArray[np.float32]
Reference = Callable[[MicroBatch], mx.array]
"""The logprobs [R, T] that the model to stay close to gives a micro-batch's tokens, evaluated."""


def _nothing() -> FloatArray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """What a step saw of every token it trained, [tokens], in the order of its micro-batches.

    ``logprob`` is the policy's, ``recorded_logprob`` the sampler's as it came, and ``behaviour_logprob`` what the
    loss took for the sampler's. ``version`` is the oldest among its record's. The rest is as in ``LossOutput``;
    ``reference_kl`` and ``policy_entropy`` are empty where the loss has no use for them.
    """

    logprob: FloatArray = field(default_factory=_nothing)
    recorded_logprob: FloatArray = field(default_factory=_nothing)
    behaviour_logprob: FloatArray = field(default_factory=_nothing)
    ratio: FloatArray = field(default_factory=_nothing)
    clipped: FloatArray = field(default_factory=_nothing)
    mismatch_kl: FloatArray = field(default_factory=_nothing)
    reference_kl: FloatArray = field(default_factory=_nothing)
    policy_entropy: FloatArray = field(default_factory=_nothing)
    version: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class StepGradient:
    """The loss of a step and its gradient by parameter path: the sums over its micro-batches."""

    loss: float
    gradients: dict[str, mx.array]
    tokens: TokenTrace


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What is differentiated: the ``objective``, with what it needs to know of the step besides its tokens.

    ``weights`` holds what each trained token of a record counts for, by record id; 1 for all where it is None.
    ``version`` is the policy's that is trained. ``reference`` is asked where the objective needs it.
    """

    objective: Objective
    weights: Mapping[str, float] | None = None
    version: int | None = None
    reference: Reference | None = None

    def inputs(self, batch: MicroBatch, logprobs: mx.array, entropies: mx.array | None) -> LossInputs:
        """The micro-batch as the objective takes it, but for the reference."""
        weights = [1.0 if self.weights is None else self.weights[id] for id in batch.record_ids]
        return LossInputs(
            logprobs=logprobs,
            behaviour_logprobs=self._behaviour(batch, logprobs),
            advantages=mx.array(batch.advantages),
            mask=mx.array(batch.mask),
            weights=mx.array(weights)[:, None],
            entropies=entropies,
        )

    def _behaviour(self, batch: MicroBatch, logprobs: mx.array) -> mx.array:
        """The sampler's logprobs; of what the very policy being trained has sampled, the learner's own.

        The two then differ by rounding alone, and the sampler's depends on what else was in its batch. With it
        out of the way a run can be repeated to the bit. What differs by more isn't rounding and stays as it is.
        """
        recorded = mx.array(batch.behaviour_logprobs)
        if self.version is None:
            return recorded
        own = mx.stop_gradient(logprobs)
        same = mx.array(batch.versions == self.version) & (mx.abs(own - recorded) < ROUNDING)
        return mx.where(same, own, recorded)


def step_gradient(
    model: nn.Module, batches: Sequence[MicroBatch], loss: StepLoss, forward: Forward
) -> StepGradient:
    """Run ``batches`` in order and sum the gradients of ``model``'s trainable parameters, evaluated."""
    objective = loss.objective

    def total_and_statistics(batch: MicroBatch, reference: mx.array | None) -> tuple[mx.array, ...]:
        logprobs, entropies = forward(model, batch, entropies=objective.needs_entropies)
        inputs = loss.inputs(batch, logprobs, entropies)
        output = objective(inputs.with_reference(reference))
        return (*output, mx.stop_gradient(logprobs), mx.stop_gradient(inputs.behaviour_logprobs))

    value_and_grad = nn.value_and_grad(model, total_and_statistics)
    gradients: dict[str, mx.array] = {}
    total, traces = 0.0, []
    for batch in batches:
        asked = loss.reference if objective.needs_reference else None
        (value, *statistics), tree = value_and_grad(batch, asked(batch) if asked else None)
        fresh = arrays_by_path(tree)
        gradients = {name: gradients[name] + g if gradients else g for name, g in fresh.items()}
        mx.eval(value, statistics, gradients)  # here, or every micro-batch's graph stays in memory
        total += value.item()
        traces.append(_trace(batch, statistics, objective))
    return StepGradient(total, gradients, _joined(traces))


def _trace(batch: MicroBatch, statistics: Sequence[mx.array], objective: Objective) -> TokenTrace:
    ratio, clipped, mismatch_kl, reference_kl, entropy, logprob, behaviour = (
        np.array(values)[batch.mask] for values in statistics
    )
    return TokenTrace(
        logprob=logprob,
        recorded_logprob=batch.behaviour_logprobs[batch.mask],
        behaviour_logprob=behaviour,
        ratio=ratio,
        clipped=clipped,
        mismatch_kl=mismatch_kl,
        reference_kl=reference_kl if objective.needs_reference else _nothing(),
        policy_entropy=entropy if objective.needs_entropies else _nothing(),
        version=batch.versions[batch.mask],
    )


def _joined(traces: Sequence[TokenTrace]) -> TokenTrace:
    if not traces:
        return TokenTrace()
    names = [one.name for one in fields(TokenTrace)]
    return TokenTrace(**{name: np.concatenate([getattr(t, name) for t in traces]) for name in names})
