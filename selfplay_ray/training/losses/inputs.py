"""What a loss is given and what it gives back.

Notation, here and in the modules beside this one: π is the policy being trained, μ the one that sampled (the
*behaviour* policy), both at the temperature the tokens were drawn at; r = π(token) / μ(token) is the importance
ratio; A is the advantage; sg(x) is x as a constant, through which no gradient flows.

A row is one record, whole: all the tokens of a completion stand side by side, because some losses look at the
sequence. A loss is a *sum* over tokens of weight × per-token loss, and the weights already hold the step's
denominator (see ``normalization``), so a step may be cut into micro-batches anywhere between rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import mlx.core as mx

LOG_RATIO_BOUND = 20.0
"""|log r| is cut here: e^20 is far outside any clipping range, and an overflow would turn 0 · ∞ into NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """A micro-batch as a loss sees it: arrays [rows, tokens], float32, logprobs in nats.

    ``logprobs`` are π's, with gradient; ``behaviour_logprobs`` μ's, as the sampler recorded them. ``mask`` (bool)
    says which tokens are trained on. ``advantages`` and ``weights`` may also be [rows, 1], or one number.
    ``proximal_logprobs``: the learner's own policy when the step began; where given, losses take their ratio to
    it in place of μ, and importance sampling makes up for the difference between the two.
    ``reference_logprobs``: the model to stay close to; needed by a KL term only.
    ``entropies``: of π's whole distribution at each token, with gradient; needed by an entropy bonus only.
    """

    logprobs: mx.array
    behaviour_logprobs: mx.array
    advantages: mx.array
    mask: mx.array
    weights: mx.array = field(default_factory=lambda: mx.array(1.0))
    proximal_logprobs: mx.array | None = None
    reference_logprobs: mx.array | None = None
    entropies: mx.array | None = None

    def masked(self) -> LossInputs:
        """The same with 0 wherever ``mask`` is False, so that nothing there reaches a value or a gradient.

        Zeroing a result instead would not do: the gradient of 0 · inf is NaN.
        """

        def zeroed(values: mx.array | None) -> mx.array | None:
            return None if values is None else mx.where(self.mask, values, 0.0)

        return replace(
            self,
            logprobs=mx.where(self.mask, self.logprobs, 0.0),
            behaviour_logprobs=mx.where(self.mask, self.behaviour_logprobs, 0.0),
            advantages=mx.where(self.mask, self.advantages, 0.0),
            weights=mx.where(self.mask, self.weights, 0.0),
            proximal_logprobs=zeroed(self.proximal_logprobs),
            reference_logprobs=zeroed(self.reference_logprobs),
            entropies=zeroed(self.entropies),
        )

    def with_reference(self, logprobs: mx.array | None) -> LossInputs:
        """The same with these ``reference_logprobs``."""
        return replace(self, reference_logprobs=logprobs)

    @property
    def anchor_logprobs(self) -> mx.array:
        """What losses take their ratio to: the proximal policy if there is one, else the behaviour policy."""
        return self.behaviour_logprobs if self.proximal_logprobs is None else self.proximal_logprobs

    @property
    def ratio(self) -> mx.array:
        """π(token) / anchor(token), with gradient, within e^±20."""
        return bounded_exp(self.logprobs - self.anchor_logprobs)


class TokenLosses(NamedTuple):
    """What a policy loss returns, [rows, tokens]: the loss of every token, and where a bound was met (bool).

    Where it was, PPO, DPPO and GSPO have no gradient, and CISPO weighs the token by the bound.
    """

    losses: mx.array
    clipped: mx.array


class LossOutput(NamedTuple):
    """What an objective returns; all but ``total`` are statistics, [rows, tokens], 0 where the mask is False.

    ``total`` is the scalar to differentiate: the weighted sum of the losses of all tokens.
    ``ratio`` is π / μ. ``clipped`` is 1 where a bound was met. ``mismatch_kl`` estimates KL(μ‖π) by r - 1 - log r,
    unbiased and never negative (Schulman 2020, "Approximating KL divergence", k3). ``reference_kl`` estimates
    KL(π‖reference) in the same way from tokens of μ, and ``entropy`` is that of π; both are 0 where the inputs
    have nothing to tell them from.
    """

    total: mx.array
    ratio: mx.array
    clipped: mx.array
    mismatch_kl: mx.array
    reference_kl: mx.array
    entropy: mx.array


class PolicyLoss(Protocol):
    """A per-token policy loss. What it is given was ``masked``; what it says of masked tokens isn't looked at."""

    def __call__(self, inputs: LossInputs) -> TokenLosses: ...


def bounded_exp(log_ratio: mx.array) -> mx.array:
    """e^x with x cut to ±20, where its gradient ends too: a token that far out says nothing about the policy."""
    return mx.exp(mx.clip(log_ratio, -LOG_RATIO_BOUND, LOG_RATIO_BOUND))
