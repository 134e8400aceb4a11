"""Every policy loss by hand for one token, and against NumPy, values and slopes, on anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loss_cases import Case, away_from, cases, slopes, value_and_gradient

from selfplay_ray.training.losses import LossInputs, Objective, PolicyLoss
from selfplay_ray.training.losses.score_function import cispo, reinforce
from selfplay_ray.training.losses.trust_region import dppo_tv, gspo, ppo_clip

BOUNDS = {"clip_low": st.floats(0.05, 0.9), "clip_high": st.floats(0.05, 2)}


def of_one_token(loss: PolicyLoss, policy: float, behaviour: float, advantage: float) -> tuple[float, ...]:
    """Loss, clipped, and d loss / d logprob of a token by its probabilities under π and μ."""

    def outputs(logprobs: mx.array) -> tuple[mx.array, ...]:
        inputs = LossInputs(
            logprobs, mx.array([[math.log(behaviour)]]), mx.array([[advantage]]), mx.array([[True]])
        )
        return Objective(loss)(inputs)

    (total, _, clipped, *_), gradient = mx.value_and_grad(outputs)(mx.array([[math.log(policy)]]))
    return total.item(), clipped.item(), gradient.item()


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
def test_ppo_by_hand(ratio, advantage, loss, clipped, gradient):
    ppo = partial(ppo_clip, clip_low=0.2, clip_high=0.28)
    assert of_one_token(ppo, 0.5 * ratio, 0.5, advantage) == pytest.approx(
        (loss, clipped, gradient), rel=1e-5
    )


@pytest.mark.parametrize(
    ("policy", "behaviour", "advantage", "loss", "masked", "gradient"),
    [
        # A rare token a hundred times likelier: π - μ = 0.0099 < 0.2, so -r A = -100 stays
        (0.01, 0.0001, 1.0, -100.0, 0, -100.0),
        # r is only 1.6, but π - μ = 0.3 > 0.2, the way A > 0 pushes: masked
        (0.8, 0.5, 1.0, 0.0, 1, 0.0),
        # The same move against what A wants: r = 1.6, -r A = 1.6, pushed back
        (0.8, 0.5, -1.0, 1.6, 0, 1.6),
        # A sure token that fell: μ - π = 0.29 > 0.2 with A < 0: masked, where r = 0.707 is inside many a clip
        (0.7, 0.99, -1.0, 0.0, 1, 0.0),
        # -r A = -0.7 / 0.99 = -0.70707
        (0.7, 0.99, 1.0, -0.70707, 0, -0.70707),
    ],
)
def test_dppo_by_hand(policy, behaviour, advantage, loss, masked, gradient):
    dppo = partial(dppo_tv, clip_low=0.2, clip_high=0.2)
    got = of_one_token(dppo, policy, behaviour, advantage)
    assert got == pytest.approx((loss, masked, gradient), rel=1e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "bounded"),
    # clip(r, 0, 3): the token above the bound keeps a gradient, with weight 3
    [(0.5, 2.0, 0.5, 0), (1.0, -2.0, 1.0, 0), (4.0, 2.0, 3.0, 1), (4.0, -2.0, 3.0, 1)],
)
def test_cispo_by_hand(ratio, advantage, weight, bounded):
    # -weight A log π at π = 0.2 r, log π = log 0.2 + log r; d/dlogprob = -weight A
    loss = partial(cispo, clip_low=1.0, clip_high=2.0)
    expected = (-weight * advantage * math.log(0.2 * ratio), bounded, -weight * advantage)
    assert of_one_token(loss, 0.2 * ratio, 0.2, advantage) == pytest.approx(expected, rel=1e-5)


def test_reinforce_by_hand():
    # -A log π = -2 · log 0.5 = 1.38629, whatever μ was; d/dlogprob = -A
    assert of_one_token(reinforce, 0.5, 0.1, 2.0) == pytest.approx((1.38629, 0, -2.0), rel=1e-5)


def test_gspo_by_hand():
    # log r = 0.3, -0.1 and 0.1 (and 5 masked): s = e^((0.3 - 0.1 + 0.1) / 3) = e^0.1 = 1.10517.
    # A = 1, inside 1 ± 0.2: each of three tokens carries -s; d/dlogprob = -s each.
    # Weighed 1/3, sequence normalization of one row, they sum to -s, with d/dlogprob = -s / 3.
    inputs = [[-0.7, -1.1, -1.9, -1.0], [-1.0, -1.0, -2.0, -6.0], [True, True, True, False]]
    logprobs, behaviour, mask = (mx.array([values]) for values in inputs)
    loss = Objective(partial(gspo, clip_low=0.2, clip_high=0.2))

    def total(logprobs: mx.array, advantage: float) -> mx.array:
        return loss(LossInputs(logprobs, behaviour, mx.array(advantage), mask, mx.array(1 / 3))).total

    value, gradient = mx.value_and_grad(total)(logprobs, 1.0)
    assert value.item() == pytest.approx(-1.10517, rel=1e-5)
    np.testing.assert_allclose(gradient, [[-0.36839, -0.36839, -0.36839, 0]], rtol=1e-4)
    # The middle token's own ratio e^-0.1 would be far inside ± 0.05; the sequence's isn't: all of it is clipped
    narrow = Objective(partial(gspo, clip_low=0.05, clip_high=0.05))
    output = narrow(LossInputs(logprobs, behaviour, mx.array(1.0), mask))
    np.testing.assert_array_equal(output.clipped, [[1, 1, 1, 0]])


Reference = Callable[[np.ndarray, np.ndarray, Case], float]
"""A loss from its paper: (π's logprobs, the same as constants, case) to the weighted sum over tokens."""


def check(loss: PolicyLoss, reference: Reference, case: Case) -> None:
    output, gradient = value_and_gradient(Objective(loss), case)
    assert output.total.item() == pytest.approx(
        reference(case.logprobs, case.logprobs, case), rel=1e-4, abs=1e-3
    )
    expected = slopes(lambda live: reference(live, case.logprobs, case), case.logprobs)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


def ratios(case: Case) -> np.ndarray:
    return np.exp((case.logprobs - case.behaviour)[case.mask])


@settings(max_examples=40)
@given(case=cases(), **BOUNDS)
def test_ppo_equals_numpy(case, clip_low, clip_high):
    assume(away_from(ratios(case), 1 - clip_low, 1 + clip_high))

    def reference(live: np.ndarray, held: np.ndarray, case: Case) -> float:
        total = 0.0
        for at in case.tokens():
            r, advantage = math.exp(live[at] - case.behaviour[at]), case.advantages[at]
            bounded = min(max(r, 1 - clip_low), 1 + clip_high)
            total += case.weights[at] * -min(r * advantage, bounded * advantage)
        return total

    check(partial(ppo_clip, clip_low=clip_low, clip_high=clip_high), reference, case)


@settings(max_examples=40)
@given(case=cases(), low=st.floats(0.05, 0.9), high=st.floats(0.05, 0.9))
def test_dppo_equals_numpy(case, low, high):
    moved = np.exp(case.logprobs) - np.exp(case.behaviour)
    assume(away_from(moved[case.mask], high, -low))

    def reference(live: np.ndarray, held: np.ndarray, case: Case) -> float:
        total = 0.0
        for at in case.tokens():
            policy, behaviour, advantage = (
                math.exp(live[at]),
                math.exp(case.behaviour[at]),
                case.advantages[at],
            )
            r, distance = policy / behaviour, abs(policy - behaviour)
            away = (advantage > 0 and r > 1 and distance > high) or (
                advantage < 0 and r < 1 and distance > low
            )
            total -= case.weights[at] * (0 if away else r * advantage)
        return total

    check(partial(dppo_tv, clip_low=low, clip_high=high), reference, case)


@settings(max_examples=40)
@given(case=cases(), **BOUNDS)
def test_cispo_equals_numpy(case, clip_low, clip_high):
    def reference(live: np.ndarray, held: np.ndarray, case: Case) -> float:
        total = 0.0
        for at in case.tokens():
            weight = min(max(math.exp(held[at] - case.behaviour[at]), 1 - clip_low), 1 + clip_high)
            total -= case.weights[at] * weight * case.advantages[at] * live[at]
        return total

    check(partial(cispo, clip_low=clip_low, clip_high=clip_high), reference, case)


@settings(max_examples=25)
@given(case=cases())
def test_reinforce_equals_numpy(case):
    def reference(live: np.ndarray, held: np.ndarray, case: Case) -> float:
        return -sum(case.weights[at] * case.advantages[at] * live[at] for at in case.tokens())

    check(reinforce, reference, case)


@settings(max_examples=40)
@given(case=cases(), low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5))
def test_gspo_equals_numpy(case, low, high):
    """Against the sequence's own objective, the gradient through its ratio and all; one advantage and weight a row."""
    rows = [row for row in range(len(case.mask)) if case.mask[row].any()]

    def sequence_ratio(logprobs: np.ndarray, row: int) -> float:
        log_ratios = (logprobs - case.behaviour)[row, case.mask[row]]
        return math.exp(log_ratios.sum() / case.mask[row].sum())

    assume(away_from(np.array([sequence_ratio(case.logprobs, row) for row in rows]), 1 - low, 1 + high))

    def reference(live: np.ndarray, held: np.ndarray, case: Case) -> float:
        total = 0.0
        for row in rows:
            s, advantage = sequence_ratio(live, row), case.advantages[row, 0]
            bounded = min(max(s, 1 - low), 1 + high)
            total += case.weights[row, 0] * -min(s * advantage, bounded * advantage)
        return total

    # What a sequence weighs, each of its tokens weighs by its share.
    tokens = np.maximum(case.mask.sum(axis=1, keepdims=True), 1)
    shape = case.mask.shape
    uniform = Case(
        **{
            **vars(case),
            "advantages": np.broadcast_to(case.advantages[:, :1], shape),
            "weights": np.broadcast_to(case.weights[:, :1] / tokens, shape),
        }
    )
    output, gradient = value_and_gradient(Objective(partial(gspo, clip_low=low, clip_high=high)), uniform)
    assert output.total.item() == pytest.approx(
        reference(case.logprobs, case.logprobs, case), rel=1e-4, abs=1e-3
    )
    expected = slopes(lambda live: reference(live, case.logprobs, case), case.logprobs)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@given(ratio=st.floats(0.05, 5), advantage=st.sampled_from([-1.5, -0.1, 0.3, 2.0]))
@settings(max_examples=30)
def test_clipped_is_where_the_gradient_stops(ratio, advantage):
    assume(away_from(np.array(ratio), 0.8, 1.1, 1 + 0.1 / 0.15))  # the last is DPPO's: π - μ = 0.1
    for loss in (ppo_clip, gspo, dppo_tv):
        bounded = partial(loss, clip_low=0.2, clip_high=0.1)
        _, clipped, gradient = of_one_token(bounded, 0.15 * ratio, 0.15, advantage)
        assert (gradient == 0) == bool(clipped)
