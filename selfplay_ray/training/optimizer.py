"""The optimizer's state as arrays by name: ``step``, and each parameter's path with ``.m`` and ``.v``."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from selfplay_ray.errors import TrainingError
from selfplay_ray.lora import arrays_by_path

STEP, LEARNING_RATE = "step", "learning_rate"


def make_adamw(parameters: Mapping[str, mx.array], lr: float, weight_decay: float) -> optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), ready to step ``parameters`` by path.

    Its moments are corrected for their start at zero, which MLX leaves out unless asked: without it the first
    steps are three times too long.
    """
    optimizer = optim.AdamW(lr, weight_decay=weight_decay, bias_correction=True)
    optimizer.init(dict(parameters))
    return optimizer


def read_optimizer(optimizer: optim.Optimizer) -> dict[str, np.ndarray]:
    """Copy the state out. The learning rate is no part of it: that is the settings' to say."""
    state = arrays_by_path(optimizer.state)
    return {name: np.array(value) for name, value in state.items() if name != LEARNING_RATE}


def write_optimizer(optimizer: optim.Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the state, all of it or nothing.

    Raises:
        TrainingError: ``arrays`` isn't the state of an optimizer of these parameters.
    """
    expected = {name: value.shape for name, value in read_optimizer(optimizer).items()}
    if expected != {name: value.shape for name, value in arrays.items()}:
        raise TrainingError("the saved optimizer state belongs to other parameters than this model's adapter")
    state: dict[str, object] = {STEP: mx.array(arrays[STEP]), LEARNING_RATE: optimizer.learning_rate}
    for name in expected.keys() - {STEP}:
        path, _, moment = name.rpartition(".")
        moments = state.setdefault(path, {})
        assert isinstance(moments, dict)
        moments[moment] = mx.array(arrays[name])
    optimizer.state = state
    mx.eval(state)
