"""Policy-gradient losses: pure functions over the tokens of a micro-batch.

Notation: π is the policy being trained, μ the one that sampled (the *behaviour* policy), both at the
temperature the tokens were drawn at; r = π(token) / μ(token) is the importance ratio; A is the advantage.
A loss is a *sum* over tokens. The trainer divides by the number of trained tokens of the whole step, so the
gradient doesn't depend on how the step was cut into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx

LOG_RATIO_BOUND = 20.0
"""|log r| is cut here: e^20 is far outside any clipping range, and an overflow would turn 0 · ∞ into NaN."""


class LossOutput(NamedTuple):
    """What a loss returns; all but ``total`` are statistics, [rows, tokens], 0 where the mask is False.

    ``total`` is the scalar to differentiate: the sum of the losses of all tokens.
    ``ratio`` is r. ``clipped`` is 1 where clipping stopped the gradient. ``mismatch_kl`` estimates KL(μ‖π)
    by r - 1 - log r, unbiased and never negative (Schulman 2020, "Approximating KL divergence", k3).
    """

    total: mx.array
    ratio: mx.array
    clipped: mx.array
    mismatch_kl: mx.array


class Loss(Protocol):
    """Any loss over a micro-batch; all arguments are [rows, tokens], ``mask`` says which tokens count.

    A row is one sequence, so a loss over whole sequences finds each one's tokens side by side.
    """

    def __call__(
        self, logprobs: mx.array, behaviour_logprobs: mx.array, advantages: mx.array, mask: mx.array
    ) -> LossOutput: ...


@dataclass(frozen=True, slots=True)
class PPOClipLoss:
    """``ppo_clip_loss`` with its bounds fixed."""

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __call__(
        self, logprobs: mx.array, behaviour_logprobs: mx.array, advantages: mx.array, mask: mx.array
    ) -> LossOutput:
        return ppo_clip_loss(
            logprobs,
            behaviour_logprobs,
            advantages,
            mask,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )


def ppo_clip_loss(
    logprobs: mx.array,
    behaviour_logprobs: mx.array,
    advantages: mx.array,
    mask: mx.array,
    *,
    clip_low: float,
    clip_high: float,
) -> LossOutput:
    """PPO's clipped surrogate, for each token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, anchored on the logprobs the sampler recorded; two bounds
    as in DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 10), whose token-level mean the trainer's division makes.

    ``logprobs`` (with gradient) and ``behaviour_logprobs`` are [rows, tokens], in nats; ``advantages`` is
    [rows, tokens] or [rows, 1]; ``mask`` is boolean.
    """
    log_ratio = mx.clip(logprobs - behaviour_logprobs, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = mx.exp(log_ratio)
    bounded = mx.clip(ratio, 1 - clip_low, 1 + clip_high)
    losses = -mx.minimum(ratio * advantages, bounded * advantages)
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    return LossOutput(
        total=_masked(losses, mask).sum(),
        ratio=mx.stop_gradient(_masked(ratio, mask)),
        clipped=mx.stop_gradient(_masked(clipped.astype(mx.float32), mask)),
        mismatch_kl=mx.stop_gradient(_masked(ratio - 1 - log_ratio, mask)),
    )


def _masked(values: mx.array, mask: mx.array) -> mx.array:
    return mx.where(mask, values, 0.0)
