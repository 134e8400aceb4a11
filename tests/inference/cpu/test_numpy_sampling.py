"""The draw in NumPy is the draw in MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from selfplay_ray.inference import sampling
from selfplay_ray.inference.cpu.cores import Cores
from selfplay_ray.inference.cpu.sampling import sample
from selfplay_ray.inference.sampling import BLOCK, SamplingRow


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK + 5, 49152])
def test_it_draws_the_same_tokens_with_the_same_logprobs(vocabulary: int, cores: Cores) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (64, vocabulary)).astype(np.float32)
    rows = [SamplingRow(seed, (1.0, 0.0, 0.7, 2.0)[seed % 4], seed // 3) for seed in range(64)]
    tokens, logprobs = sample(logits, rows, cores)
    wanted, theirs = sampling.sample(mx.array(logits), rows)
    assert (tokens == np.array(wanted)).all()
    assert np.abs(logprobs - np.array(theirs)).max() < 1e-5
    assert (tokens.dtype, logprobs.dtype) == (np.int32, np.float32)


def test_banned_tokens_are_not_drawn_and_the_logits_stay_as_they_are(cores: Cores) -> None:
    logits = np.zeros((200, 4), dtype=np.float32)
    tokens, logprobs = sample(logits, [SamplingRow(seed, 1.0, 0, (1, 3, 9)) for seed in range(200)], cores)
    assert set(tokens.tolist()) == {0, 2}
    assert np.abs(logprobs - np.log(0.5)).max() < 1e-6
    assert (logits == 0).all()


def test_a_row_without_numbers_spoils_no_other(cores: Cores) -> None:
    logits = np.zeros((2, 300), dtype=np.float32)
    logits[0] = np.nan
    rows = [SamplingRow(seed, 1.0, 0) for seed in range(2)]
    alone, its_logprob = sample(logits[1:], rows[1:], cores)
    both, logprobs = sample(logits, rows, cores)
    assert (both[1], logprobs[1]) == (alone[0], its_logprob[0])
    assert 0 <= both[0] < 300
