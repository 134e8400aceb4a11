"""The trainer's default loss under its four arguments is the objective with PPO's clipping."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from selfplay_ray.training.loss import PPOClipLoss
from selfplay_ray.training.losses import LossInputs, LossSettings, make_objective


def test_it_is_the_objective():
    arguments = (
        mx.array([[-0.9, -1.0, -1.0]]),
        mx.array([[-1.4, -2.0, -1.0]]),
        mx.array([[3.0]]),
        mx.array([[True, False, True]]),
    )
    output = PPOClipLoss(0.2, 0.28)(*arguments)
    expected = make_objective(LossSettings())(LossInputs(*arguments))
    assert output._fields == expected._fields[:4]
    for one, other in zip(output, expected, strict=False):
        np.testing.assert_array_equal(one, other)
