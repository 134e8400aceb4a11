"""Policy-gradient losses as pure functions over the tokens of a micro-batch, each with its paper named."""

from selfplay_ray.training.losses.inputs import Loss, LossInputs, LossOutput, PolicyLoss, TokenLosses
from selfplay_ray.training.losses.methods import (
    LOSSES,
    LossName,
    LossSettings,
    Method,
    make_objective,
    step_weights,
)
from selfplay_ray.training.losses.normalization import Normalization, token_weights
from selfplay_ray.training.losses.objective import KLPlacement, KLTerm, Objective
from selfplay_ray.training.losses.regularization import KLEstimator

__all__ = [
    "LOSSES",
    "KLEstimator",
    "KLPlacement",
    "KLTerm",
    "Loss",
    "LossInputs",
    "LossName",
    "LossOutput",
    "LossSettings",
    "Method",
    "Normalization",
    "Objective",
    "PolicyLoss",
    "TokenLosses",
    "make_objective",
    "step_weights",
    "token_weights",
]
