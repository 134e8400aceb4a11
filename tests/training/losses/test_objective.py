"""What holds of every objective: masks, micro-batches, extremes; and importance sampling beside each loss."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loss_cases import Case, away_from, cases, slopes, value_and_gradient

from selfplay_ray.loss_settings import LossSettings
from selfplay_ray.training.losses import LOSSES, LossInputs, Objective, make_objective
from selfplay_ray.training.losses.score_function import cispo, reinforce, truncated_importance_weights
from selfplay_ray.training.losses.trust_region import dppo_tv, ppo_clip

EVERYTHING = {
    "kl_coefficient": 0.1,
    "log_ratio_coefficient": 0.01,
    "entropy_coefficient": 0.01,
}
OBJECTIVES = {name: make_objective(LossSettings(loss=name)) for name in LOSSES} | {
    f"{name}-everything": make_objective(
        LossSettings(loss=name, truncation=2.0, kl_estimator=estimator, **EVERYTHING)
    )
    for name, estimator in zip(LOSSES, ["k1", "k2", "k3"] * 2, strict=True)
}
KINDS = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@KINDS
@settings(max_examples=6)
@given(case=cases(), rubbish=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_masked_tokens_never_matter(objective, case, rubbish):
    def spoiled(values: np.ndarray) -> np.ndarray:
        return np.where(case.mask, values, np.float32(rubbish))

    spoilt = replace(case, **{name: spoiled(values) for name, values in vars(case).items() if name != "mask"})
    output, gradient = value_and_gradient(objective, case, proximal=True)
    again, gradient_again = value_and_gradient(objective, spoilt, proximal=True)
    for one, other in zip(output, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(gradient, gradient_again)
    assert not gradient[~case.mask].any()


@KINDS
@settings(max_examples=6)
@given(case=cases(), cut=st.integers(0, 3), padding=st.integers(0, 2))
def test_micro_batches_sum_to_the_step(objective, case, cut, padding):
    whole, gradient = value_and_gradient(objective, case)
    total, gradients = 0.0, []
    for rows in (slice(0, cut), slice(cut, None)):
        part = replace(
            case,
            **{name: np.pad(values[rows], ((0, 0), (0, padding))) for name, values in vars(case).items()},
        )
        if len(part.mask):
            output, of_part = value_and_gradient(objective, part)
            total += output.total.item()
            gradients.append(of_part[:, : case.mask.shape[1]])
    assert total == pytest.approx(whole.total.item(), rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(np.concatenate(gradients), gradient, rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [500.0, -500.0])
def test_a_huge_gap_between_the_policies_stays_finite(objective, advantage, gap):
    token, mask = mx.array([[-1.0, -1.0]]), mx.array([[True, True]])
    moved = token + mx.array([[gap, 0.0]])

    def outputs(logprobs: mx.array) -> tuple[mx.array, ...]:
        return objective(
            LossInputs(
                logprobs, token, mx.array(advantage), mask, reference_logprobs=token, entropies=0 * logprobs
            )
        )

    values, gradient = mx.value_and_grad(outputs)(moved)
    for value in (*values, gradient):
        assert np.isfinite(np.array(value)).all()


def test_statistics_by_hand():
    # r = e^0.1 and 1, a masked token between: k3 = e^0.1 - 1 - 0.1 = 0.00517 of KL(μ‖π)
    output = Objective(partial(ppo_clip, clip_low=0.2, clip_high=0.05))(
        LossInputs(
            mx.array([[-0.9, -1.0, -1.0]]),
            mx.array([[-1.0, -2.0, -1.0]]),
            mx.array([[3.0]]),
            mx.array([[True, False, True]]),
        )
    )
    # -(min(1.10517, 1.05) · 3 + 1 · 3) = -6.15
    assert output.total.item() == pytest.approx(-6.15, rel=1e-5)
    np.testing.assert_allclose(output.ratio, [[1.10517, 0, 1]], rtol=1e-5)
    np.testing.assert_allclose(output.mismatch_kl, [[0.00517, 0, 0]], atol=1e-5)
    np.testing.assert_array_equal(output.clipped, [[1, 0, 0]])
    np.testing.assert_array_equal(output.reference_kl, [[0, 0, 0]])
    np.testing.assert_array_equal(output.entropy, [[0, 0, 0]])


def test_importance_weights_by_hand():
    # π / μ = e^0.5 = 1.6487 and e^-1 = 0.3679, cut at 1.5; the second is under it
    one = mx.array([[-0.5, -2.0]])
    inputs = LossInputs(one, mx.array([[-1.0, -1.0]]), mx.array(1.0), mx.array([[True, True]]))
    np.testing.assert_allclose(truncated_importance_weights(inputs, 1.5), [[1.5, 0.36788]], rtol=1e-4)
    # From a proximal policy they are its ratio to μ: e^0.2 and 1
    proximal = replace(inputs, proximal_logprobs=mx.array([[-0.8, -1.0]]))
    np.testing.assert_allclose(truncated_importance_weights(proximal, 1.5), [[1.2214, 1.0]], rtol=1e-4)


def log_softmax(logits: list[float]) -> np.ndarray:
    return np.array(logits) - np.log(np.exp(logits).sum())


POLICY, BEHAVIOUR = [0.3, -1.2, 0.8, 0.0], [0.9, -0.3, 0.2, -0.8]
REWARDS = np.array([1.0, 0.0, -0.5, 2.0])


def mean_gradient(objective: Objective) -> np.ndarray:
    """The gradient by logit of the mean loss over tokens drawn by ``BEHAVIOUR``, all of them counted out."""
    behaviour = mx.array(log_softmax(BEHAVIOUR), mx.float32)[None]

    def total(logits: mx.array) -> mx.array:
        logprobs = (logits - mx.logsumexp(logits))[None]
        rewards = mx.array(REWARDS, mx.float32)[None]
        mask = mx.ones(logprobs.shape, mx.bool_)
        return objective(LossInputs(logprobs, behaviour, rewards, mask, weights=mx.exp(behaviour))).total

    return np.array(mx.grad(total)(mx.array(POLICY, mx.float32)))


def test_with_importance_sampling_reinforce_climbs_the_reward_from_anothers_tokens():
    expected = -slopes(lambda logits: float((np.exp(log_softmax(logits)) * REWARDS).sum()), np.array(POLICY))
    largest = np.exp(log_softmax(POLICY) - log_softmax(BEHAVIOUR)).max()
    untruncated = mean_gradient(Objective(reinforce, truncation=largest + 1))
    np.testing.assert_allclose(untruncated, expected, atol=1e-5)
    assert np.abs(mean_gradient(Objective(reinforce)) - expected).max() > 0.01
    assert np.abs(mean_gradient(Objective(reinforce, truncation=1.0)) - expected).max() > 0.01  # its bias


@settings(max_examples=25)
@given(case=cases(), bound=st.floats(0.2, 5))
def test_truncated_weights_are_never_above_the_ratio_nor_the_bound(case, bound):
    weights = np.array(truncated_importance_weights(case.inputs(), bound))
    ratio = np.exp(case.logprobs - case.behaviour)
    np.testing.assert_allclose(weights, np.minimum(ratio, bound), rtol=1e-4)


@settings(max_examples=25)
@given(case=cases(), bound=st.floats(1, 5))
def test_three_losses_meet_under_one_truncation(case, bound):
    """CISPO is truncated REINFORCE; PPO at a ratio of 1 has REINFORCE's gradient."""
    _, reinforced = value_and_gradient(Objective(reinforce, truncation=bound), case)
    _, bounded = value_and_gradient(Objective(partial(cispo, clip_low=1, clip_high=bound - 1)), case)
    _, clipped = value_and_gradient(
        Objective(partial(ppo_clip, clip_low=0.2, clip_high=0.2), truncation=bound), case
    )
    np.testing.assert_allclose(bounded, reinforced, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(clipped, reinforced, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(case=cases(), bound=st.floats(0.5, 5))
def test_a_proximal_policy_equals_numpy(case, bound):
    """PPO around the proximal policy, corrected for the sampler: decoupled PPO (arXiv:2110.00641, eq. 7)."""
    low, high = 0.2, 0.28
    moved = np.exp((case.logprobs - case.proximal)[case.mask])
    assume(away_from(moved, 1 - low, 1 + high))

    def reference(live: np.ndarray) -> float:
        total = 0.0
        for at in case.tokens():
            weight = min(math.exp(case.proximal[at] - case.behaviour[at]), bound)
            r, advantage = math.exp(live[at] - case.proximal[at]), case.advantages[at]
            bounded = min(max(r, 1 - low), 1 + high)
            total -= case.weights[at] * weight * min(r * advantage, bounded * advantage)
        return total

    objective = Objective(partial(ppo_clip, clip_low=low, clip_high=high), truncation=bound)
    output, gradient = value_and_gradient(objective, case, proximal=True)
    assert output.total.item() == pytest.approx(reference(case.logprobs), rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(gradient, slopes(reference, case.logprobs), rtol=1e-3, atol=1e-3)


def test_dppo_keeps_its_distance_to_the_sampler_under_truncation():
    # π = 0.8, μ = 0.5: 0.3 > 0.2 and A > 0, though the ratio to π before the step is 1: no gradient.
    # At μ = 0.7 it has -min(0.8 / 0.7, 1.1) = -1.1.
    def total(logprobs: mx.array) -> mx.array:
        behaviour, mask = mx.log(mx.array([[0.5, 0.7]])), mx.array([[True, True]])
        objective = Objective(partial(dppo_tv, clip_low=0.2, clip_high=0.2), truncation=1.1)
        return objective(LossInputs(logprobs, behaviour, mx.array(1.0), mask)).total

    gradient = mx.grad(total)(mx.log(mx.array([[0.8, 0.8]])))
    np.testing.assert_allclose(gradient, [[0, -1.1]], rtol=1e-5)


@settings(max_examples=10)
@given(case=cases())
def test_masked_inputs_are_zero_there_and_untouched_elsewhere(case):
    inputs = case.inputs(proximal=True)
    for name in LossInputs.__slots__:
        before, after = np.array(getattr(inputs, name)), np.array(getattr(inputs.masked(), name))
        np.testing.assert_array_equal(after, np.where(case.mask, before, 0))


def test_a_case_holds_what_the_inputs_do():
    """Every array of the inputs is in the cases above, or a test of them all would leave it out."""
    assert len(vars(Case(*[np.zeros((1, 1))] * 8))) == len(LossInputs.__slots__)
