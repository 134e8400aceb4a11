"""Losses whose gradient is that of log π times a weight: every token keeps its gradient, however far it moved."""

from __future__ import annotations

import mlx.core as mx

from selfplay_ray.training.losses.inputs import LossInputs, TokenLosses, bounded_exp


def reinforce(inputs: LossInputs) -> TokenLosses:
    """-A log π for each token: the plain policy gradient (Williams 1992, Machine Learning 8).

    Right for tokens that the policy itself sampled; with ones of an older policy it needs importance sampling,
    ``truncated_importance_weights``.
    """
    losses = -inputs.advantages * inputs.logprobs
    return TokenLosses(losses, mx.zeros(losses.shape, mx.bool_))


def cispo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLosses:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log π for each token.

    MiniMax 2025 (MiniMax-M1, arXiv:2506.13585), eq. 4 and 5: the ratio is bounded, not the token's gradient.
    Like them, leave out the lower bound with ``clip_low`` 1; ScaleRL (Khatri et al. 2025, arXiv:2510.13786)
    finds the upper one uncritical around r = 5, ``clip_high`` 4.
    """
    ratio = mx.stop_gradient(inputs.ratio)
    weight = mx.clip(ratio, 1 - clip_low, 1 + clip_high)
    return TokenLosses(-weight * inputs.advantages * inputs.logprobs, weight != ratio)


def truncated_importance_weights(inputs: LossInputs, bound: float) -> mx.array:
    """min(proximal / μ, bound) for each token, a constant: makes up for tokens that another policy sampled.

    Truncated importance sampling: Ionides 2008 (J. Comp. Graph. Stat. 17), for the gap between an inference
    engine and a learner Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training". Never larger than importance sampling's own weights, so biased towards μ, with bounded variance.
    The proximal policy is the one a loss takes its ratio to; without one it is π itself.
    """
    proximal = inputs.logprobs if inputs.proximal_logprobs is None else inputs.proximal_logprobs
    return mx.stop_gradient(mx.minimum(bounded_exp(proximal - inputs.behaviour_logprobs), bound))
