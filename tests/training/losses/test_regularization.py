"""KL, log² r and entropy: by hand, against NumPy, and what their gradients are on average, counted out in full."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import cases, slopes, value_and_gradient

from selfplay_ray.errors import TrainingError
from selfplay_ray.training.losses import KLTerm, LossInputs, Objective
from selfplay_ray.training.losses.regularization import kl_estimate
from selfplay_ray.training.losses.score_function import reinforce

ESTIMATES: dict[str, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}


def test_the_estimates_by_hand():
    # log π = -1, log reference = -1.5, d = 0.5: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5 = 0.106531
    for estimator, value in (("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)):
        assert kl_estimate(mx.array(-1.0), mx.array(-1.5), estimator).item() == pytest.approx(value, rel=1e-5)


def test_the_terms_by_hand():
    # A = 0, log π = -1, log μ = -1.2, log reference = -1.5, H = 2:
    # 0.1 · k2 0.125 + 0.5 · 0.2² - 0.01 · 2 = 0.0125 + 0.02 - 0.02 = 0.0125
    objective = Objective(
        reinforce, kl=KLTerm(0.1, "k2", importance_weighted=False), log_ratio=0.5, entropy=0.01
    )
    one = mx.array([[1.0]])
    inputs = LossInputs(
        -1.0 * one, -1.2 * one, 0.0 * one, one > 0, reference_logprobs=-1.5 * one, entropies=2.0 * one
    )
    output = objective(inputs)
    assert output.total.item() == pytest.approx(0.0125, rel=1e-5)
    assert output.entropy.item() == 2
    assert output.reference_kl.item() == pytest.approx(0.106531, rel=1e-5)  # k3, whatever is trained with


def test_advantages_by_hand():
    # d = 0.5, -0.2, 0.1: A = 1 becomes 1 - 0.1 d = 0.95, 1.02, 0.99;
    # to go, with sums 0.4, -0.1, 0.1: 0.96, 1.01, 0.99. REINFORCE's gradient is minus that.
    logprobs = mx.array([[-1.0, -1.2, -0.9, -7.0]])
    reference = mx.array([[-1.5, -1.0, -1.0, 0.0]])
    mask = mx.array([[True, True, True, False]])
    for placement, advantages in (
        ("advantage", [0.95, 1.02, 0.99, 0]),
        ("advantage_to_go", [0.96, 1.01, 0.99, 0]),
    ):
        objective = Objective(reinforce, kl=KLTerm(0.1, placement=placement))

        def total(logprobs: mx.array, objective: Objective = objective) -> mx.array:
            inputs = LossInputs(logprobs, logprobs, mx.array(1.0), mask, reference_logprobs=reference)
            return objective(inputs).total

        np.testing.assert_allclose(-mx.grad(total)(logprobs), [advantages], rtol=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@settings(max_examples=15)
@given(case=cases())
def test_penalties_equal_numpy(estimator, weighted, case):
    objective = Objective(
        reinforce,
        kl=KLTerm(0.3, estimator, importance_weighted=weighted),
        log_ratio=0.2,
        entropy=0.1,
    )

    def reference(live: np.ndarray, held: np.ndarray) -> float:
        total = 0.0
        for at in case.tokens():
            r = math.exp((held if estimator == "k2" else live)[at] - case.behaviour[at]) if weighted else 1.0
            kl = r * ESTIMATES[estimator](live[at] - case.reference[at])
            squared = (live[at] - case.behaviour[at]) ** 2
            token = -case.advantages[at] * live[at] + 0.3 * kl + 0.2 * squared - 0.1 * case.entropies[at]
            total += case.weights[at] * token
        return total

    output, gradient = value_and_gradient(objective, case)
    assert output.total.item() == pytest.approx(reference(case.logprobs, case.logprobs), rel=1e-4, abs=1e-3)
    expected = slopes(lambda live: reference(live, case.logprobs), case.logprobs)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=30)
@given(d=st.floats(-6, 6))
def test_k2_and_k3_are_never_negative(d):
    for estimator in ("k2", "k3"):
        assert kl_estimate(mx.array(d), mx.array(0.0), estimator).item() >= 0


# Expectations counted out: one row that holds every token of a vocabulary, weighed by who draws it.

LOGITS = np.array([0.3, -1.2, 0.8, 0.0, -0.4])
REFERENCE = np.array([-0.5, 0.4, 0.1, 0.9, -1.5])
BEHAVIOUR = np.array([0.9, -0.3, 0.2, -0.8, 0.1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergence(logits: np.ndarray, others: np.ndarray) -> float:
    """KL(softmax(logits) ‖ softmax(others)), exactly."""
    p, q = log_softmax(logits), log_softmax(others)
    return float((np.exp(p) * (p - q)).sum())


def mean_gradient(objective: Objective, drawn_by: np.ndarray) -> np.ndarray:
    """The gradient by logit of the mean over tokens drawn by ``drawn_by``, with no advantage anywhere."""

    def total(logits: mx.array) -> mx.array:
        logprobs = (logits - mx.logsumexp(logits))[None]
        behaviour = mx.array(log_softmax(drawn_by), mx.float32)[None]
        reference = mx.array(log_softmax(REFERENCE), mx.float32)[None]
        mask = mx.ones(logprobs.shape, mx.bool_)
        weights = mx.exp(behaviour)
        inputs = LossInputs(
            logprobs, behaviour, mx.array(0.0), mask, weights=weights, reference_logprobs=reference
        )
        return objective(inputs).total

    return np.array(mx.grad(total)(mx.array(LOGITS, mx.float32)))


FORWARD = slopes(lambda logits: divergence(REFERENCE, logits), LOGITS)
REVERSE = slopes(lambda logits: divergence(logits, REFERENCE), LOGITS)


def test_the_values_are_right_on_average():
    p, q = log_softmax(LOGITS), log_softmax(REFERENCE)
    exact = divergence(LOGITS, REFERENCE)
    means = {}
    for estimator in ("k1", "k2", "k3"):
        estimates = np.array(kl_estimate(mx.array(p, mx.float32), mx.array(q, mx.float32), estimator))
        means[estimator] = (np.exp(p) * estimates).sum()
    assert means["k1"] == pytest.approx(exact, rel=1e-5)
    assert means["k3"] == pytest.approx(exact, rel=1e-5)
    assert abs(means["k2"] - exact) > 1e-3


@pytest.mark.parametrize(("estimator", "gradient"), [("k1", 0 * REVERSE), ("k2", REVERSE), ("k3", FORWARD)])
def test_as_a_plain_penalty_only_k2_descends_the_kl(estimator, gradient):
    objective = Objective(reinforce, kl=KLTerm(1.0, estimator, importance_weighted=False))
    np.testing.assert_allclose(mean_gradient(objective, drawn_by=LOGITS), gradient, atol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_weighed_by_the_ratio_all_of_them_do_even_with_tokens_of_another_policy(estimator):
    objective = Objective(reinforce, kl=KLTerm(1.0, estimator))
    np.testing.assert_allclose(mean_gradient(objective, drawn_by=BEHAVIOUR), REVERSE, atol=1e-5)


def test_so_does_k1_in_the_advantage():
    objective = Objective(reinforce, kl=KLTerm(1.0, placement="advantage"))
    np.testing.assert_allclose(mean_gradient(objective, drawn_by=LOGITS), REVERSE, atol=1e-5)


def test_to_go_is_the_gradient_of_the_sequences_kl():
    """All nine sequences of two tokens out of three; the second's distribution hangs on the first."""
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))  # the start, and after each first token
    pairs = [(first, second) for first in range(3) for second in range(3)]
    contexts = np.array([[0, 1 + first] for first, _ in pairs])
    tokens = np.array(pairs)

    def of_sequences(logprobs: np.ndarray) -> np.ndarray:
        return logprobs[contexts, tokens]  # [9, 2]

    def exact(logits: np.ndarray) -> float:
        p, q = of_sequences(log_softmax(logits)).sum(1), of_sequences(log_softmax(others)).sum(1)
        return float((np.exp(p) * (p - q)).sum())

    drawn = of_sequences(log_softmax(logits))
    reference = mx.array(of_sequences(log_softmax(others)), mx.float32)
    weights = mx.array(np.exp(drawn.sum(1, keepdims=True)), mx.float32)

    def gradient(placement: str) -> np.ndarray:
        objective = Objective(reinforce, kl=KLTerm(1.0, placement=placement))

        def total(logits: mx.array) -> mx.array:
            normal = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            logprobs = normal[mx.array(contexts), mx.array(tokens)]
            mask = mx.ones(logprobs.shape, mx.bool_)
            behaviour = mx.stop_gradient(logprobs)
            inputs = LossInputs(
                logprobs, behaviour, mx.array(0.0), mask, weights=weights, reference_logprobs=reference
            )
            return objective(inputs).total

        return np.array(mx.grad(total)(mx.array(logits, mx.float32)))

    expected = slopes(exact, logits)
    np.testing.assert_allclose(gradient("advantage_to_go"), expected, atol=1e-5)
    assert np.abs(gradient("advantage") - expected).max() > 0.01  # a part of it only


def test_entropy_is_held_up():
    """The gradient of the bonus is minus that of the entropy the inputs bring along."""
    objective = Objective(reinforce, entropy=0.5)

    def total(entropies: mx.array) -> mx.array:
        one = mx.array([[-1.0, -1.0]])
        mask = mx.array([[True, False]])
        return objective(LossInputs(one, one, mx.array(0.0), mask, mx.array(0.25), entropies=entropies)).total

    np.testing.assert_allclose(mx.grad(total)(mx.array([[2.0, 3.0]])), [[-0.125, 0]])


def test_what_a_term_needs_is_asked_for():
    one = mx.array([[-1.0]])
    inputs = LossInputs(one, one, one, one < 0)
    for objective, needed in (
        (Objective(reinforce, kl=KLTerm(0.1)), "reference"),
        (Objective(reinforce, kl=KLTerm(0.1, placement="advantage")), "reference"),
        (Objective(reinforce, entropy=0.1), "entropies"),
    ):
        assert objective.needs_every_record
        assert objective.needs_reference == (needed == "reference")
        assert objective.needs_entropies == (needed == "entropies")
        with pytest.raises(TrainingError, match=needed):
            objective(inputs)
    assert not Objective(reinforce, log_ratio=0.1).needs_every_record
