"""Terms beside the policy loss: staying close to a reference model, or to the sampler, and staying undecided.

d = log π - log reference, at a token that π drew. Schulman 2020 ("Approximating KL divergence") names three
estimates of KL(π‖reference), all judged by their *value*. What trains is their *gradient*, which is another
matter (Tang & Munos 2025, arXiv:2506.09477; Liu et al. 2025, arXiv:2510.01555):

    estimate           value                    gradient, as a loss        on average over π's tokens
    k1  d              unbiased                 ∇log π                     0: it holds nothing back
    k2  d² / 2         biased, never negative   d ∇log π                   that of KL(π‖reference): right
    k3  e^-d - 1 + d   unbiased, never negative (1 - e^-d) ∇log π          that of KL(reference‖π): another KL

Two more ways are right: k1 in the advantage (``kl_shaped_advantages``), and any unbiased estimate times the
importance ratio with its gradient, which also corrects for tokens drawn by μ (DeepSeek-V3.2, arXiv:2512.02556).
"""

from __future__ import annotations

import mlx.core as mx

from selfplay_ray.errors import TrainingError
from selfplay_ray.loss_settings import KLEstimator
from selfplay_ray.training.losses.inputs import LOG_RATIO_BOUND, LossInputs, bounded_exp


def kl_estimate(logprobs: mx.array, other_logprobs: mx.array, estimator: KLEstimator) -> mx.array:
    """An estimate of KL(p‖q) at each token that p drew, from the token's logprobs under both; see above."""
    difference = logprobs - other_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    bounded = mx.clip(difference, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return mx.expm1(-bounded) + bounded


def kl_penalty(inputs: LossInputs, estimator: KLEstimator, importance_weighted: bool = True) -> mx.array:
    """The KL of each token to the reference, to add to its loss.

    ``importance_weighted`` multiplies it by π/μ, through which the gradient flows. The gradient is then that of
    KL(π‖reference) for k1 and k3, and for tokens of an older policy too. k2, biased in its value, gets the ratio
    as a constant: that keeps its gradient right. GRPO's penalty is k3 without it (arXiv:2402.03300, eq. 4).

    Raises:
        TrainingError: the inputs have no reference logprobs.
    """
    penalty = kl_estimate(inputs.logprobs, reference_of(inputs), estimator)
    if not importance_weighted:
        return penalty
    ratio = bounded_exp(inputs.logprobs - inputs.behaviour_logprobs)
    return penalty * (mx.stop_gradient(ratio) if estimator == "k2" else ratio)


def kl_shaped_advantages(inputs: LossInputs, coefficient: float, to_go: bool = False) -> mx.array:
    """A - coefficient · sg(d), [rows, tokens]: a reward of -d for every token, as in RLHF with PPO.

    Ziegler et al. 2019 (arXiv:1909.08593), eq. 2. Token by token its gradient is that of each step's own KL.
    A token also decides where the later ones start from; with ``to_go`` it answers for them, d being the sum
    from it to the end of its row. Only that is the gradient of the KL between whole sequences (Tang & Munos
    2025), with a variance that grows with their length.

    Raises:
        TrainingError: the inputs have no reference logprobs.
    """
    difference = mx.stop_gradient(inputs.logprobs - reference_of(inputs))
    if to_go:
        difference = mx.cumsum(difference, axis=1, reverse=True)
    return inputs.advantages - coefficient * difference


def log_ratio_penalty(inputs: LossInputs) -> mx.array:
    """log² r of each token, r to the sampler's policy: a spring that holds the policy to where it sampled.

    Kimi K2.5 (Moonshot AI 2026, arXiv:2602.02276) beside its policy gradient. It isn't cut as the ratio is, so
    it pulls on a token however far that has gone.
    """
    return (inputs.logprobs - inputs.behaviour_logprobs) ** 2


def entropy_bonus(inputs: LossInputs) -> mx.array:
    """The entropy of each token's whole distribution, in nats, to subtract from its loss.

    Williams & Peng 1991 (Connection Science 3); the -log π of a drawn token won't do, whose gradient is 0 on
    average.

    Raises:
        TrainingError: the inputs have no entropies.
    """
    if inputs.entropies is None:
        raise TrainingError("the loss has an entropy bonus, and was given no entropies of the policy")
    return inputs.entropies


def reference_of(inputs: LossInputs) -> mx.array:
    """The reference's logprobs.

    Raises:
        TrainingError: there are none.
    """
    if inputs.reference_logprobs is None:
        raise TrainingError("the loss has a KL term, and was given no logprobs of the reference model")
    return inputs.reference_logprobs
