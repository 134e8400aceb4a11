"""The objective of a step: a policy loss, the terms beside it, and the sum over the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from selfplay_ray.loss_settings import KLEstimator, KLPlacement
from selfplay_ray.training.losses.inputs import LossInputs, LossOutput, PolicyLoss, bounded_exp
from selfplay_ray.training.losses.regularization import (
    entropy_bonus,
    kl_estimate,
    kl_penalty,
    kl_shaped_advantages,
    log_ratio_penalty,
)
from selfplay_ray.training.losses.score_function import truncated_importance_weights


@dataclass(frozen=True, slots=True)
class KLTerm:
    """How a step is held to the reference: see ``regularization`` for what each does to the gradient.

    ``placement`` "penalty" adds the ``estimator``'s KL to the loss; "advantage" takes k1 off the advantage of its
    own token, "advantage_to_go" that of the rest of the record too, and neither looks at ``estimator``.
    ``importance_weighted`` is the penalty's.
    """

    coefficient: float
    estimator: KLEstimator = "k2"
    placement: KLPlacement = "penalty"
    importance_weighted: bool = True


@dataclass(frozen=True, slots=True)
class Objective:
    """Σ weight · (truncated weight · policy loss + kl · KL + log_ratio · log² r - entropy · H) over a step's tokens.

    A term whose coefficient is 0, or None, isn't computed and needs nothing of the inputs.

    ``truncation`` turns on truncated importance sampling with that bound. A ratio to μ already corrects for the
    sampler, and correcting twice would be wrong; so the policy loss then takes its ratio to the inputs' proximal
    policy, or, where they have none, to π before the step. With one step a batch that ratio is 1: PPO and GSPO
    never clip, and bound tokens only by truncating; DPPO's distance stays that to μ.
    """

    policy_loss: PolicyLoss
    truncation: float | None = None
    kl: KLTerm | None = None
    log_ratio: float = 0.0
    entropy: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether the inputs must have ``reference_logprobs``."""
        return self.kl is not None

    @property
    def needs_entropies(self) -> bool:
        """Whether the inputs must have ``entropies``."""
        return self.entropy != 0

    @property
    def needs_every_record(self) -> bool:
        """Whether records with an advantage of 0 have a gradient, and so may not be skipped.

        log² r doesn't count: what isn't pushed away need not be held.
        """
        return self.needs_reference or self.needs_entropies

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """The sum and its statistics.

        Raises:
            TrainingError: the inputs lack what a term needs.
        """
        inputs = inputs.masked()
        losses, clipped = self._policy_losses(inputs)
        if self.kl is not None and self.kl.placement == "penalty":
            penalty = kl_penalty(inputs, self.kl.estimator, self.kl.importance_weighted)
            losses = losses + self.kl.coefficient * penalty
        if self.log_ratio:
            losses = losses + self.log_ratio * log_ratio_penalty(inputs)
        if self.entropy:
            losses = losses - self.entropy * entropy_bonus(inputs)
        return _output(inputs, losses, clipped)

    def _policy_losses(self, inputs: LossInputs) -> tuple[mx.array, mx.array]:
        if self.kl is not None and self.kl.placement != "penalty":
            to_go = self.kl.placement == "advantage_to_go"
            inputs = replace(inputs, advantages=kl_shaped_advantages(inputs, self.kl.coefficient, to_go))
        if self.truncation is None:
            return self.policy_loss(inputs)
        weights = truncated_importance_weights(inputs, self.truncation)
        if inputs.proximal_logprobs is None:
            inputs = replace(inputs, proximal_logprobs=mx.stop_gradient(inputs.logprobs))
        losses, clipped = self.policy_loss(inputs)
        return weights * losses, clipped | (weights >= self.truncation)


def _output(inputs: LossInputs, losses: mx.array, clipped: mx.array) -> LossOutput:
    def statistic(values: mx.array | None) -> mx.array:
        kept = mx.zeros(losses.shape) if values is None else mx.where(inputs.mask, values, 0.0)
        return mx.stop_gradient(kept.astype(mx.float32))

    reference, behaviour = inputs.reference_logprobs, inputs.behaviour_logprobs
    return LossOutput(
        total=mx.where(inputs.mask, inputs.weights * losses, 0.0).sum(),
        ratio=statistic(bounded_exp(inputs.logprobs - behaviour)),
        clipped=statistic(clipped),
        mismatch_kl=statistic(kl_estimate(behaviour, inputs.logprobs, "k3")),
        reference_kl=statistic(None if reference is None else kl_estimate(inputs.logprobs, reference, "k3")),
        entropy=statistic(inputs.entropies),
    )
