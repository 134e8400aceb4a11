"""What a run says about its loss; ``training.losses`` computes it. Apart, because a configuration needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LossName = Literal["ppo_clip", "dppo_tv", "cispo", "gspo", "dr_grpo", "reinforce"]
Normalization = Literal["token", "sequence", "constant"]
KLEstimator = Literal["k1", "k2", "k3"]
KLPlacement = Literal["penalty", "advantage", "advantage_to_go"]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The method by name, and what is to be different from its paper: None leaves it to the method, 0 turns a term off.

    ``max_tokens`` is what constant normalization divides a record by.
    """

    loss: LossName = "ppo_clip"
    clip_low: float | None = None
    clip_high: float | None = None
    normalization: Normalization | None = None
    max_tokens: int = 256
    role_weights: Mapping[str, float] = field(default_factory=dict)
    truncation: float | None = None
    log_ratio_coefficient: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: KLEstimator = "k2"
    kl_placement: KLPlacement = "penalty"
    kl_importance_weighted: bool = True
    entropy_coefficient: float = 0.0
