"""Losses that take a token's, or a sequence's, gradient away once the policy has moved far enough on it."""

from __future__ import annotations

import mlx.core as mx

from selfplay_ray.training.losses.inputs import LossInputs, TokenLosses, bounded_exp


def ppo_clip(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLosses:
    """PPO's clipped surrogate, for each token: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Schulman et al. 2017 (arXiv:1707.06347), eq. 7, anchored on the logprobs the sampler recorded; two bounds as
    in DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 10). With constant normalization, and advantages that aren't
    divided by their spread, it is Dr. GRPO (Liu et al. 2025, arXiv:2503.20783, section 3.2).
    """
    return _clipped_surrogate(inputs.ratio, inputs.advantages, clip_low, clip_high)


def gspo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLosses:
    """PPO's surrogate with the ratio of whole sequences: the geometric mean of those of its trained tokens.

    Zheng et al. 2025 (arXiv:2507.18071), eq. 5 to 7: s = exp(mean over the row's tokens of log r), and
    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A). In the form of their GSPO-token (section 4.3), where
    every token has s as its ratio and a gradient of its own, sg(s) π / sg(π): the same gradient when a row has
    one advantage, and a sensible one when its tokens differ. It belongs with sequence normalization. A mean over a
    sequence moves far less than one token does, which is why its bounds are a thousand times narrower.
    """
    log_ratio = inputs.logprobs - inputs.anchor_logprobs
    tokens = mx.maximum(inputs.mask.sum(axis=1, keepdims=True), 1)
    mean = mx.stop_gradient(log_ratio.sum(axis=1, keepdims=True) / tokens)
    own = inputs.logprobs - mx.stop_gradient(inputs.logprobs)  # 0, but for its gradient
    return _clipped_surrogate(bounded_exp(mean + own), inputs.advantages, clip_low, clip_high)


def dppo_tv(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLosses:
    """-M r A for each token, with M = 0 where the policy moved too far from the sampler's, the way A pushes it.

    DPPO with the binary total variation (Qi et al. 2026, "Rethinking the Trust Region in LLM Reinforcement
    Learning", arXiv:2602.04879): the distance between the two policies is that between their odds of *this*
    token or any other, |π - μ|. M = 0 where A > 0, r > 1 and π - μ > clip_high, or A < 0, r < 1 and
    μ - π > clip_low; else 1. So a rare token may grow a hundredfold, and a sure one may not fall from 0.99 to
    0.7, where a bound on r has it the other way round. The distance is always to μ, also where the ratio isn't.
    """
    moved = mx.stop_gradient(mx.exp(inputs.logprobs) - mx.exp(inputs.behaviour_logprobs))
    too_far = ((inputs.advantages > 0) & (moved > clip_high)) | (
        (inputs.advantages < 0) & (moved < -clip_low)
    )
    return TokenLosses(mx.where(too_far, 0.0, -inputs.ratio * inputs.advantages), too_far)


def _clipped_surrogate(
    ratio: mx.array, advantages: mx.array, clip_low: float, clip_high: float
) -> TokenLosses:
    bounded = mx.clip(ratio, 1 - clip_low, 1 + clip_high)
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    return TokenLosses(-mx.minimum(ratio * advantages, bounded * advantages), clipped)
