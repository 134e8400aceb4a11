"""The default loss under the four arguments that the step's gradient passes it; what it computes is in ``losses``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import mlx.core as mx

from selfplay_ray.training.losses import LossInputs, Objective
from selfplay_ray.training.losses.trust_region import ppo_clip


class LossOutput(NamedTuple):
    """The first four of ``losses.LossOutput``."""

    total: mx.array
    ratio: mx.array
    clipped: mx.array
    mismatch_kl: mx.array


class Loss(Protocol):
    """Any loss over a micro-batch; all arguments are [rows, tokens], ``mask`` says which tokens count.

    A row is one sequence, so a loss over whole sequences finds each one's tokens side by side.
    """

    def __call__(
        self, logprobs: mx.array, behaviour_logprobs: mx.array, advantages: mx.array, mask: mx.array
    ) -> LossOutput: ...


@dataclass(frozen=True, slots=True)
class PPOClipLoss:
    """``ppo_clip`` with its bounds fixed, summed over the tokens."""

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __call__(
        self, logprobs: mx.array, behaviour_logprobs: mx.array, advantages: mx.array, mask: mx.array
    ) -> LossOutput:
        objective = Objective(partial(ppo_clip, clip_low=self.clip_low, clip_high=self.clip_high))
        output = objective(LossInputs(logprobs, behaviour_logprobs, advantages, mask))
        return LossOutput(output.total, output.ratio, output.clipped, output.mismatch_kl)
