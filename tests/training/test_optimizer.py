"""AdamW's first step, the learning rate's way through a run, and going on from a saved state."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_ray.errors import ConfigError, TrainingError
from selfplay_ray.training.optimizer import make_adamw, make_schedule, read_optimizer, write_optimizer

PARAMETERS = {"layers.0.lora_a": mx.array([1.0, -2.0]), "layers.0.lora_b": mx.array([0.5])}


def step(optimizer: optim.AdamW, parameters: dict[str, mx.array], by: float) -> dict[str, mx.array]:
    gradients = {name: mx.full(value.shape, by) for name, value in parameters.items()}
    updated = optimizer.apply_gradients(gradients, parameters)
    mx.eval(updated, optimizer.state)
    return updated


def rates(schedule, steps: int) -> list[float]:
    """The learning rates that an optimizer takes its steps at."""
    optimizer = make_adamw(PARAMETERS, schedule, 0.0)
    taken = []
    for _ in range(steps):
        step(optimizer, PARAMETERS, by=1.0)
        taken.append(optimizer.learning_rate.item())
    return taken


def test_the_first_step_is_as_long_as_the_learning_rate():
    # Both moments corrected: m / sqrt(v) = g / |g| = 1, and weight decay adds lr · 0.1 · w:
    # 1 - 0.01 · (1 + 0.1 · 1) = 0.989, and -2 - 0.01 · (1 - 0.2) = -2.008
    updated = step(make_adamw(PARAMETERS, 0.01, 0.1), PARAMETERS, by=3.0)
    np.testing.assert_allclose(updated["layers.0.lora_a"], [0.989, -2.008], rtol=1e-5)


@pytest.mark.parametrize(
    ("decay", "rest"),
    [
        ("constant", [8, 8, 8, 8, 8]),
        # From 8 to a quarter of it in 4 steps: 1.5 less each time, and no further
        ("linear", [8, 6.5, 5, 3.5, 2]),
        # 2 + 6 · (1 + cos(π k / 4)) / 2
        ("cosine", [8, 2 + 3 * (1 + math.sqrt(0.5)), 5, 2 + 3 * (1 - math.sqrt(0.5)), 2]),
    ],
)
def test_schedules_by_hand(decay, rest):
    schedule = make_schedule(8.0, decay=decay, warmup=4, steps=8, final=0.25)
    assert rates(schedule, 10) == pytest.approx([2, 4, 6, 8, *rest, rest[-1]], rel=1e-5)


def test_a_warm_up_of_one_step_is_one_at_the_full_rate():
    for warmup in (0, 1):
        schedule = make_schedule(8.0, decay="linear", warmup=warmup, steps=4 + warmup)
        assert rates(schedule, 4 + warmup) == pytest.approx([8] * warmup + [8, 6, 4, 2])


def test_a_run_too_short_for_its_warm_up_is_refused():
    with pytest.raises(ConfigError, match="5 steps of warm-up in a run of 5"):
        make_schedule(1.0, decay="cosine", warmup=5, steps=5)
    assert rates(make_schedule(1.0, warmup=5, steps=3), 6)[-2:] == [1, 1]


@settings(max_examples=15)
@given(
    decay=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 5),
    rest=st.integers(1, 8),
    stop=st.integers(0, 6),
)
def test_going_on_from_a_saved_state_is_going_on(decay, warmup, rest, stop):
    def make() -> optim.AdamW:
        schedule = make_schedule(3e-4, decay=decay, warmup=warmup, steps=warmup + rest, final=0.1)
        return make_adamw(PARAMETERS, schedule, 0.01)

    through, parameters = make(), PARAMETERS
    for taken in range(stop):
        parameters = step(through, parameters, by=taken - 2.0)
    saved = read_optimizer(through)
    assert saved["step"] == stop
    assert "learning_rate" not in saved

    resumed = make()
    write_optimizer(resumed, saved)
    assert resumed.learning_rate.item() == through.learning_rate.item()
    np.testing.assert_equal(read_optimizer(resumed), saved)
    for taken in range(3):
        one, other = step(through, parameters, by=taken), step(resumed, parameters, by=taken)
        assert resumed.learning_rate.item() == through.learning_rate.item()
        np.testing.assert_equal(read_optimizer(resumed), read_optimizer(through))
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
        parameters = one


def test_a_new_constant_rate_holds_over_a_saved_state():
    old = make_adamw(PARAMETERS, 0.1, 0.0)
    step(old, PARAMETERS, by=1.0)
    lower = make_adamw(PARAMETERS, 0.001, 0.0)
    write_optimizer(lower, read_optimizer(old))
    assert lower.learning_rate.item() == pytest.approx(0.001)


def test_anothers_state_is_refused():
    other = make_adamw({"layers.0.lora_a": mx.zeros(3)}, 0.1, 0.0)
    with pytest.raises(TrainingError, match="other parameters"):
        write_optimizer(other, read_optimizer(make_adamw(PARAMETERS, 0.1, 0.0)))
