"""What a training step says about itself: is the gradient sound, is the data fresh, what did it cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from selfplay_ray.training.gradient import TokenTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMetrics:
    """One training step. What has no finite value, a mean over no tokens for one, is None, never NaN.

    ``loss`` is what was minimised, ``grad_norm`` the norm of its gradient before clipping, ``lr`` the learning rate.
    ``nonfinite`` says that the norm was not a finite number, and the step was not applied.
    ``records`` were trained on; ``skipped_zero_advantage`` had no gradient. ``tokens_run`` went through the
    model, padding included. ``seconds`` is wall time.

    ``ratio_mean`` is the mean importance ratio; ``ratio_lag0`` the largest |ratio - 1| over the tokens of records
    that the very weights being trained had sampled, first token to last, by the logprobs as they were recorded:
    rounding, or engine and learner disagree. ``mismatch_kl`` estimates KL(sampler‖policy), where rounding counts
    as none; ``clip_fraction`` is the share of tokens at a bound, and ``entropy`` is minus the mean behaviour
    logprob: an estimate of the *sampler's* entropy in nats a token, from its samples. A loss with an entropy bonus
    tells the ``policy_entropy`` itself, one with a KL term the ``reference_kl``, KL(policy‖reference).
    ``staleness`` counts versions between the oldest policy of a token's record and the trainer's.
    """

    loss: float | None
    grad_norm: float | None
    lr: float
    nonfinite: bool
    records: int
    skipped_zero_advantage: int
    tokens_trained: int
    tokens_run: int
    seconds: float
    ratio_mean: float | None
    ratio_lag0: float | None
    mismatch_kl: float | None
    clip_fraction: float | None
    entropy: float | None
    policy_entropy: float | None
    reference_kl: float | None
    staleness_mean: float | None
    staleness_max: int | None

    def flat(self) -> dict[str, float]:
        """Everything that has a number, by name."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHealth:
    """The part of ``TrainMetrics`` that comes from the tokens."""

    ratio_mean: float | None = None
    ratio_lag0: float | None = None
    mismatch_kl: float | None = None
    clip_fraction: float | None = None
    entropy: float | None = None
    policy_entropy: float | None = None
    reference_kl: float | None = None
    staleness_mean: float | None = None
    staleness_max: int | None = None


def token_health(tokens: TokenTrace, version: int) -> TokenHealth:
    """Means over the trained tokens, seen from policy ``version``, the one being trained."""
    if not tokens.ratio.size:
        return TokenHealth()
    staleness = version - tokens.version
    current = staleness == 0
    difference = tokens.logprob[current].astype(np.float64) - tokens.recorded_logprob[current]
    return TokenHealth(
        ratio_mean=_mean(tokens.ratio),
        ratio_lag0=finite(float(np.abs(np.expm1(difference)).max())) if current.any() else None,
        mismatch_kl=_mean(tokens.mismatch_kl),
        clip_fraction=_mean(tokens.clipped),
        entropy=_mean(-tokens.behaviour_logprob),
        policy_entropy=_mean(tokens.policy_entropy),
        reference_kl=_mean(tokens.reference_kl),
        staleness_mean=_mean(staleness),
        staleness_max=int(staleness.max()),
    )


def finite(value: float) -> float | None:
    """``value``, or None where it is infinite or not a number: neither JSON nor a chart can hold those."""
    return value if math.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    return finite(float(values.mean(dtype=np.float64))) if values.size else None
