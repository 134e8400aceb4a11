"""The draw of ``selfplay_ray.inference.sampling``, in NumPy: the same race with the same keys."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from selfplay_ray.inference.cpu.cores import Cores, Share
from selfplay_ray.inference.sampling import BLOCK, SamplingRow, draw_key, exponentials


def sample(logits: np.ndarray, rows: Sequence[SamplingRow], cores: Cores) -> tuple[np.ndarray, np.ndarray]:
    """Draw one token a row and say how likely it was: int32[B] and float32[B], of logits float32[B, V]."""
    scaled = _scaled(logits, rows)
    batch, vocabulary = scaled.shape
    largest = np.empty(batch, dtype=np.float32)
    sums = np.empty((batch, -(-vocabulary // BLOCK)), dtype=np.float32)

    def sum_up(share: Share) -> None:
        every = share.of(batch)
        for row in range(every.start, every.stop):  # one by one they stay in a core's cache
            largest[row] = scaled[row].max()
            sums[row] = _block_sums(scaled[row], largest[row])

    cores.run("sampling", sum_up)
    greedy = np.array([row.temperature == 0 for row in rows])
    tokens = scaled.argmax(axis=-1) if greedy.any() else np.zeros(batch, dtype=np.int64)
    with np.errstate(all="ignore"):  # what has no probability never arrives
        if not greedy.all():
            tokens = np.where(greedy, tokens, _race(scaled, largest, sums, rows))
        normalizer = largest + np.log(sums.sum(axis=-1))
    return tokens.astype(np.int32), scaled[np.arange(batch), tokens] - normalizer


def _block_sums(logits: np.ndarray, largest: np.float32) -> np.ndarray:
    """The sum of each block's weights, the likeliest token's being 1: [blocks], of logits [V]."""
    weights = np.zeros(-(-len(logits) // BLOCK) * BLOCK, dtype=np.float32)
    np.subtract(logits, largest, out=weights[: len(logits)])
    np.exp(weights[: len(logits)], out=weights[: len(logits)])
    sums: np.ndarray = weights.reshape(-1, BLOCK).sum(axis=-1)
    return sums


def _scaled(logits: np.ndarray, rows: Sequence[SamplingRow]) -> np.ndarray:
    """The logits each row is drawn from: at its temperature, without its banned tokens."""
    scaled = logits
    if any(row.temperature not in (0.0, 1.0) for row in rows):
        scaled = scaled / np.array([[row.temperature or 1.0] for row in rows], dtype=np.float32)
    size = scaled.shape[-1]
    banned = [(index, token) for index, row in enumerate(rows) for token in row.banned if 0 <= token < size]
    if banned:
        scaled = scaled.copy()
        scaled[tuple(np.array(banned).T)] = -np.inf
    return scaled


def _race(
    scaled: np.ndarray, largest: np.ndarray, sums: np.ndarray, rows: Sequence[SamplingRow]
) -> np.ndarray:
    """The winning block of each row, then the winning token inside it: int64[B]."""
    (batch, vocabulary), blocks = scaled.shape, sums.shape[-1]
    keys = mx.array([draw_key(row.seed, row.position) for row in rows], dtype=mx.uint32)
    times = np.asarray(exponentials(keys, blocks + BLOCK))
    block = np.argmin(times[:, :blocks] / sums, axis=-1)
    tokens = block[:, None] * BLOCK + np.arange(BLOCK)
    inside = np.exp(scaled[np.arange(batch)[:, None], np.minimum(tokens, vocabulary - 1)] - largest[:, None])
    inside[tokens >= vocabulary] = 0
    chosen: np.ndarray = block * BLOCK + np.argmin(times[:, blocks:] / inside, axis=-1)
    return chosen
