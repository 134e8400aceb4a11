"""PPO's clipped loss: by hand on both sides of the clip, and against NumPy on anything."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selfplay_ray.training.loss import LOG_RATIO_BOUND, PPOClipLoss, ppo_clip_loss

LOW, HIGH = 0.2, 0.28
BEHAVIOUR = math.log(0.5)


def loss_of(ratio: float, advantage: float) -> tuple[float, float, float]:
    """Loss, clipped, and d loss / d logprob of one token whose ratio is ``ratio``."""

    def total(logprobs):
        return ppo_clip_loss(
            logprobs,
            mx.array([[BEHAVIOUR]]),
            mx.array([[advantage]]),
            mx.array([[True]]),
            clip_low=LOW,
            clip_high=HIGH,
        )

    (value, _, clipped, _), gradient = mx.value_and_grad(total)(mx.array([[BEHAVIOUR + math.log(ratio)]]))
    return value.item(), clipped.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # min(r A, clip(r) A), negated; inside the clip d/dlogprob = -r A
        (1.0, 2.0, -2.0, 0, -2.0),
        (1.1, 2.0, -2.2, 0, -2.2),
        # above 1.28 with A > 0: -min(1.5·2, 1.28·2) = -2.56, and nothing more to gain
        (1.5, 2.0, -2.56, 1, 0.0),
        # below 0.8 with A > 0: -min(0.5·2, 0.8·2) = -1.0: pulled back up, not clipped
        (0.5, 2.0, -1.0, 0, -1.0),
        # below 0.8 with A < 0: -min(0.5·-2, 0.8·-2) = 1.6, and nothing more to gain
        (0.5, -2.0, 1.6, 1, 0.0),
        # above 1.28 with A < 0: -min(1.5·-2, 1.28·-2) = 3.0: pushed back down, not clipped
        (1.5, -2.0, 3.0, 0, 3.0),
        (1.0, -2.0, 2.0, 0, 2.0),
    ],
)
def test_by_hand(ratio, advantage, loss, clipped, gradient):
    assert loss_of(ratio, advantage) == pytest.approx((loss, clipped, gradient), rel=1e-5)


def test_the_sum_leaves_masked_tokens_out():
    # ratios e^0.1 and e^0 count, e^1 doesn't: -(1.10517 · 3 + 1 · 3) = -6.31551
    output = PPOClipLoss(LOW, HIGH)(
        mx.array([[-0.9, -1.0, -1.0]]),
        mx.array([[-1.0, -2.0, -1.0]]),
        mx.array([[3.0]]),
        mx.array([[True, False, True]]),
    )
    assert output.total.item() == pytest.approx(-6.31551, rel=1e-5)
    np.testing.assert_allclose(np.array(output.ratio), [[1.10517, 0, 1]], rtol=1e-5)
    # k3: r - 1 - log r = 1.10517 - 1 - 0.1
    np.testing.assert_allclose(np.array(output.mismatch_kl), [[0.00517, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [500.0, -500.0])
def test_a_huge_gap_between_sampler_and_policy_stays_finite(advantage, gap):
    def total(logprobs):
        return ppo_clip_loss(
            logprobs,
            mx.array([[-1.0]]),
            mx.array([[advantage]]),
            mx.array([[True]]),
            clip_low=LOW,
            clip_high=HIGH,
        ).total

    value, gradient = mx.value_and_grad(total)(mx.array([[-1.0 + gap]]))
    assert math.isfinite(value.item())
    assert math.isfinite(gradient.item())


def reference(logprobs, behaviour, advantages, mask, low, high):
    """The same in NumPy, token by token and in float64."""
    total, clipped, kl = 0.0, 0, 0.0
    for index in np.ndindex(logprobs.shape):
        if not mask[index]:
            continue
        log_ratio = float(np.clip(float(logprobs[index]) - float(behaviour[index]), -20, 20))
        ratio, advantage = math.exp(log_ratio), float(advantages[index])
        surrogate, bounded = ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage
        total -= min(surrogate, bounded)
        clipped += bounded < surrogate
        kl += ratio - 1 - log_ratio
    return total, clipped, kl


SHAPE = st.tuples(st.integers(1, 4), st.integers(1, 6))


@given(data=st.data(), shape=SHAPE, low=st.floats(0, 0.9), high=st.floats(0, 2))
def test_equals_numpy(data, shape, low, high):
    def draw(lowest, highest):
        numbers = st.floats(lowest, highest, width=32, allow_subnormal=False)
        return data.draw(hnp.arrays(np.float32, shape, elements=numbers))

    logprobs, behaviour, advantages = draw(-4, 0), draw(-4, 0), draw(-3, 3)
    mask = data.draw(hnp.arrays(np.bool_, shape))
    arguments = (logprobs, behaviour, advantages, mask)
    output = ppo_clip_loss(*map(mx.array, arguments), clip_low=low, clip_high=high)
    total, _, kl = reference(*arguments, low, high)
    assert output.total.item() == pytest.approx(total, rel=1e-4, abs=1e-3)
    assert output.mismatch_kl.sum().item() == pytest.approx(kl, rel=1e-4, abs=1e-4)
    assert np.array(output.mismatch_kl).min() >= -1e-6
    assert LOG_RATIO_BOUND == 20


@given(ratio=st.floats(0.05, 5), advantage=st.sampled_from([-1.5, -0.1, 0.3, 2.0]))
def test_clipped_is_where_the_gradient_stops(ratio, advantage):
    _, clipped, gradient = loss_of(ratio, advantage)
    assert (gradient == 0) == bool(clipped)
