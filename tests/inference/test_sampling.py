"""Keyed sampling: the right distribution, its own logprob, and nothing of the batch around it."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_ray.inference.sampling import BLOCK, SamplingRow, draw_key, sample

DRAWS = 40_000


def rows(count: int, temperature: float = 1.0, position: int = 0) -> list[SamplingRow]:
    return [SamplingRow(seed, temperature, position) for seed in range(count)]


def counts(logits: np.ndarray, temperature: float = 1.0, position: int = 0) -> np.ndarray:
    batch = mx.broadcast_to(mx.array(logits, dtype=mx.float32), (DRAWS, len(logits)))
    tokens, _ = sample(batch, rows(DRAWS, temperature, position))
    return np.bincount(np.array(tokens), minlength=len(logits))


def assert_distributed(observed: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square, 5 standard deviations above its mean at most: mean k - 1, variance 2 (k - 1)."""
    expected = probabilities * observed.sum()
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(probabilities) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_follow_the_softmax() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    assert_distributed(counts(np.log(probabilities)), probabilities)


def test_temperature_sharpens() -> None:
    # p ∝ 1, 2, 5 at temperature 0.5 becomes p ∝ 1², 2², 5² = 1, 4, 25.
    assert_distributed(counts(np.log([1, 2, 5]), temperature=0.5), np.array([1, 4, 25]) / 30)


def test_every_token_of_several_blocks_is_drawn_as_often_as_it_should() -> None:
    weights = np.random.default_rng(0).exponential(size=2 * BLOCK + 40)
    probabilities = (weights + 0.2) / (weights + 0.2).sum()
    assert_distributed(counts(np.log(probabilities)), probabilities)


def test_a_rare_token_in_a_block_of_its_own_is_reached() -> None:
    # 40,000 draws at p = 1/2000 expect 20, with a standard deviation of √20 = 4.5.
    logits = np.full(BLOCK + 1, -math.inf)
    logits[:2] = math.log(0.5 * 1999 / 2000)
    logits[BLOCK] = math.log(1 / 2000)
    assert abs(counts(logits)[BLOCK] - 20) < 5 * math.sqrt(20)


def test_a_token_of_probability_0_is_never_drawn() -> None:
    logits = np.full(600, -math.inf)
    logits[[7, 300]] = 0.0
    observed = counts(logits)
    assert observed[7] + observed[300] == DRAWS


def test_successive_positions_are_independent() -> None:
    logits = mx.zeros((DRAWS, 4))
    first, second = (np.array(sample(logits, rows(DRAWS, position=p))[0]) for p in (0, 1))
    assert_distributed(np.bincount(4 * first + second, minlength=16), np.full(16, 1 / 16))


def test_logprob_by_hand() -> None:
    # Logits log 1, log 2, log 5 at temperature 0.5: p = 1/30, 4/30, 25/30.
    logits = mx.broadcast_to(mx.log(mx.array([1.0, 2.0, 5.0])), (64, 3))
    tokens, logprobs = sample(logits, rows(64, temperature=0.5))
    by_hand = np.log([1 / 30, 4 / 30, 25 / 30])[np.array(tokens)]
    assert set(np.array(tokens)) == {0, 1, 2}
    assert logprobs.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_logprobs_over_a_vocabulary_are_exact() -> None:
    """To 1e-5 of float64: one long float32 sum over 49,152 tokens would be off by ten times that."""
    logits = np.random.default_rng(0).normal(size=(8, 49152)).astype(np.float32) * 3
    tokens, logprobs = sample(mx.array(logits), rows(8))
    exact = logits.astype(np.float64)
    exact = exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(exact, np.array(tokens)[:, None], axis=-1)[:, 0]
    assert np.array(logprobs) == pytest.approx(chosen, abs=1e-5)


def test_greedy_takes_the_likeliest_with_its_logprob_at_temperature_1() -> None:
    logits = mx.log(mx.array([[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]))
    tokens, logprobs = sample(logits, rows(2, temperature=0.0))
    assert tokens.tolist() == [2, 0]
    assert logprobs.tolist() == pytest.approx([math.log(5 / 8), math.log(6 / 8)], abs=1e-6)


def test_logits_in_half_precision_are_normalised_in_single() -> None:
    _, logprobs = sample(mx.zeros((1, 49152), dtype=mx.bfloat16), rows(1))
    assert logprobs.dtype == mx.float32
    assert logprobs.item() == pytest.approx(-math.log(49152), abs=1e-5)


@settings(max_examples=20)
@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8, unique=True),
    temperatures=st.lists(st.sampled_from([0.0, 0.7, 1.0, 1.3]), min_size=8, max_size=8),
    position=st.integers(0, 10_000),
)
def test_a_row_does_not_depend_on_its_batch(
    seeds: list[int], temperatures: list[float], position: int
) -> None:
    batch = [SamplingRow(s, t, position) for s, t in zip(seeds, temperatures, strict=False)]
    logits = mx.array(np.random.default_rng(len(seeds)).normal(size=(len(batch), 1000)) * 3)
    tokens, logprobs = sample(logits, batch)
    for index, row in enumerate(batch):
        token, logprob = sample(logits[index : index + 1], [row])
        assert token.item() == tokens[index].item()
        assert logprob.item() == pytest.approx(logprobs[index].item(), abs=1e-6)


def test_keys_are_splitmix64s() -> None:
    # The generator's published first outputs for seeds 0 and 1234567.
    assert draw_key(0, 0) == (0xE220A839, 0x7B1DCDAF)
    high, low = draw_key(1234567, 0)
    assert (high << 32 | low) == 6457827717110365317
    high, low = draw_key(1234567, 1)
    assert (high << 32 | low) == 3203168211198807973
