"""The optimizer, its learning rate over a run, and its state as arrays by name: ``step``, and each parameter's
path with ``.m`` and ``.v``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from selfplay_ray.errors import ConfigError, TrainingError
from selfplay_ray.lora import arrays_by_path

STEP, LEARNING_RATE = "step", "learning_rate"

Decay = Literal["constant", "linear", "cosine"]
Schedule = Callable[[mx.array], mx.array]
"""The learning rate of a step from the steps taken before it, and from nothing else."""


def make_schedule(
    lr: float, *, decay: Decay = "constant", warmup: int = 0, steps: int = 1, final: float = 0.0
) -> Schedule:
    """``lr`` over a run of ``steps``: up in a straight line for ``warmup`` of them, then level or down.

    Step k (from 0) of the warm-up has lr (k + 1) / warmup, so that no step is taken at a rate of 0, and the
    last of them has ``lr``. From there "linear" and "cosine" (Loshchilov & Hutter 2017, arXiv:1608.03983,
    eq. 5, without restarts) reach ``final`` × lr where the run ends, and stay there should it go on.
    Steps are those that were applied: one without a finite gradient, or without records, isn't counted.

    Raises:
        ConfigError: the warm-up is as long as the run, or longer, and leaves no step to decay in.
    """
    rest = steps - warmup
    if decay != "constant" and rest < 1:
        raise ConfigError(
            f"a learning rate can't decay after {warmup} steps of warm-up in a run of {steps}; "
            "shorten the warm-up or keep the rate constant"
        )
    if decay == "linear":
        after = optim.linear_schedule(lr, final * lr, rest)
    elif decay == "cosine":
        after = optim.cosine_decay(lr, rest, final * lr)
    else:
        after = optim.linear_schedule(lr, lr, 1)
    if not warmup:
        schedule: Schedule = after
        return schedule
    before = optim.linear_schedule(lr / warmup, lr, max(warmup - 1, 1))
    joined: Schedule = optim.join_schedules([before, after], [warmup])
    return joined


def make_adamw(parameters: Mapping[str, mx.array], lr: float | Schedule, weight_decay: float) -> optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), ready to step ``parameters`` by path.

    Its moments are corrected for their start at zero, which MLX leaves out unless asked: without it the first
    steps are three times too long.
    """
    optimizer = optim.AdamW(lr, weight_decay=weight_decay, bias_correction=True)
    optimizer.init(dict(parameters))
    return optimizer


def read_optimizer(optimizer: optim.Optimizer) -> dict[str, np.ndarray]:
    """Copy the state out. The learning rate is no part of it: it follows from the settings and ``step``."""
    state = arrays_by_path(optimizer.state)
    return {name: np.array(value) for name, value in state.items() if name != LEARNING_RATE}


def write_optimizer(optimizer: optim.Optimizer, arrays: Mapping[str, np.ndarray]) -> None:
    """Set the state, all of it or nothing, and with it the learning rate that the last step had.

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
    if arrays[STEP] > 0:
        # MLX looks the rate up when a step is taken: take the last one again, with nothing to update.
        optimizer.state[STEP] = optimizer.step - 1
        optimizer.apply_gradients({}, {})
    mx.eval(optimizer.state)
