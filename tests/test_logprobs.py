"""The normalizer of the softmax, against NumPy in float64."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.logprobs import log_normalizer, softmax_weights


def exact(logits: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))


@pytest.mark.parametrize("vocabulary", [1, 50, 256, 257, 49152, 50257])
def test_float32_is_enough_for_any_vocabulary(vocabulary):
    logits = np.random.default_rng(0).normal(0, 4, (3, vocabulary)).astype(np.float32)
    np.testing.assert_allclose(np.array(log_normalizer(mx.array(logits))), exact(logits), rtol=0, atol=5e-6)


def test_by_hand_and_far_from_zero():
    # log(e^1000 + e^1000 + e^0) = 1000 + log 2
    assert log_normalizer(mx.array([1000.0, 1000.0, 0.0])).item() == pytest.approx(1000.693147, abs=1e-4)


def test_its_gradient_is_the_softmax():
    logits = np.random.default_rng(0).normal(0, 3, 300).astype(np.float32)
    gradient = mx.grad(lambda values: log_normalizer(values).sum())(mx.array(logits))
    softmax = np.exp(logits.astype(np.float64) - exact(logits))
    np.testing.assert_allclose(np.array(gradient), softmax, rtol=1e-4, atol=1e-9)


def test_a_half_precision_row_is_summed_in_float32():
    logits = mx.zeros(49152, mx.bfloat16)
    assert log_normalizer(logits).item() == pytest.approx(np.log(49152), abs=1e-5)


def test_weights_are_the_softmax_up_to_a_factor():
    # e^0, e^log 2, e^log 5 over the largest: 1/5, 2/5, 1; their normalizer is log 8
    weights, normalizer = softmax_weights(mx.array([[0.0, np.log(2), np.log(5)]]))
    np.testing.assert_allclose(np.array(weights), [[0.2, 0.4, 1.0]], rtol=1e-6)
    assert normalizer.item() == pytest.approx(np.log(8), abs=1e-6)
