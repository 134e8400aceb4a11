"""The published methods by name, with the bounds and the normalization of their papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from selfplay_ray.errors import ConfigError
from selfplay_ray.loss_settings import LossName, LossSettings, Normalization
from selfplay_ray.training.losses.inputs import PolicyLoss, TokenLosses
from selfplay_ray.training.losses.normalization import token_weights
from selfplay_ray.training.losses.objective import KLTerm, Objective
from selfplay_ray.training.losses.score_function import cispo, reinforce
from selfplay_ray.training.losses.trust_region import dppo_tv, gspo, ppo_clip
from selfplay_ray.types import TrainingRecord


@dataclass(frozen=True, slots=True)
class Method:
    """A policy loss with what goes with it in print. ``bounds`` are (low, high), None where the loss has none."""

    policy_loss: Callable[..., TokenLosses]
    bounds: tuple[float, float] | None
    normalization: Normalization = "token"
    log_ratio: float = 0.0


LOSSES: Mapping[LossName, Method] = MappingProxyType(
    {
        "ppo_clip": Method(ppo_clip, (0.2, 0.28)),
        "dppo_tv": Method(dppo_tv, (0.2, 0.2), log_ratio=1e-3),
        "cispo": Method(cispo, (1.0, 4.0)),
        "gspo": Method(gspo, (3e-4, 4e-4), "sequence"),
        "dr_grpo": Method(ppo_clip, (0.2, 0.2), "constant"),
        "reinforce": Method(reinforce, None),
    }
)
"""DPPO's log² r is no part of its paper: Kimi K2.5's term, added to it with this coefficient by prime-rl."""


def make_objective(settings: LossSettings) -> Objective:
    """The objective that ``settings`` describe.

    Raises:
        ConfigError: bounds are given for a loss that has none.
    """
    method = LOSSES[settings.loss]
    kl = KLTerm(
        settings.kl_coefficient,
        settings.kl_estimator,
        settings.kl_placement,
        settings.kl_importance_weighted,
    )
    return Objective(
        _policy_loss(method, settings),
        truncation=settings.truncation,
        kl=kl if kl.coefficient else None,
        log_ratio=_given(settings.log_ratio_coefficient, method.log_ratio),
        entropy=settings.entropy_coefficient,
    )


def step_weights(records: Sequence[TrainingRecord], settings: LossSettings) -> dict[str, float]:
    """The weight of each trained token of each of a step's records, by record id: see ``token_weights``."""
    return token_weights(
        records,
        settings.normalization or LOSSES[settings.loss].normalization,
        max_tokens=settings.max_tokens,
        role_weights=settings.role_weights,
    )


def _policy_loss(method: Method, settings: LossSettings) -> PolicyLoss:
    if method.bounds is not None:
        low, high = method.bounds
        bounds = {"clip_low": _given(settings.clip_low, low), "clip_high": _given(settings.clip_high, high)}
        return partial(method.policy_loss, **bounds)
    if settings.clip_low is not None or settings.clip_high is not None:
        raise ConfigError(
            f"the loss {settings.loss} bounds nothing; leave out clip_low and clip_high, or choose another loss"
        )
    return method.policy_loss


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
