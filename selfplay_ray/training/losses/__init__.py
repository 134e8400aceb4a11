"""Policy-gradient losses as pure functions over the tokens of a micro-batch, each with its paper named."""

from selfplay_ray.training.losses.inputs import LossInputs, LossOutput, PolicyLoss, TokenLosses
from selfplay_ray.training.losses.methods import LOSSES, Method, make_objective, step_weights
from selfplay_ray.training.losses.normalization import token_mean, token_weights
from selfplay_ray.training.losses.objective import KLTerm, Objective

__all__ = [
    "LOSSES",
    "KLTerm",
    "LossInputs",
    "LossOutput",
    "Method",
    "Objective",
    "PolicyLoss",
    "TokenLosses",
    "make_objective",
    "step_weights",
    "token_mean",
    "token_weights",
]
