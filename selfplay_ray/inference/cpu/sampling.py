"""The draw of ``selfplay_ray.inference.sampling``, in NumPy: the same race with the same keys."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from selfplay_ray.inference.sampling import BLOCK, SamplingRow, draw_key, exponentials


def sample(logits: np.ndarray, rows: Sequence[SamplingRow]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one token a row and say how likely it was: int32[B] and float32[B], of logits float32[B, V]."""
    with np.errstate(all="ignore"):  # what has no probability never arrives
        return _sample(logits, rows)


def _sample(logits: np.ndarray, rows: Sequence[SamplingRow]) -> tuple[np.ndarray, np.ndarray]:
    scaled = _scaled(logits, rows)
    largest = scaled.max(axis=-1, keepdims=True)
    batch, vocabulary = scaled.shape
    blocks = -(-vocabulary // BLOCK)
    weights = np.zeros((batch, blocks * BLOCK), dtype=np.float32)
    np.exp(np.subtract(scaled, largest, out=weights[:, :vocabulary]), out=weights[:, :vocabulary])
    grid = weights.reshape(batch, blocks, BLOCK)
    sums = grid.sum(axis=-1)
    greedy = np.array([row.temperature == 0 for row in rows])
    tokens = weights.argmax(axis=-1) if greedy.any() else np.zeros(batch, dtype=np.int64)
    if not greedy.all():
        tokens = np.where(greedy, tokens, _race(grid, sums, rows))
    normalizer = largest[:, 0] + np.log(sums.sum(axis=-1))
    return tokens.astype(np.int32), scaled[np.arange(batch), tokens] - normalizer


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


def _race(grid: np.ndarray, sums: np.ndarray, rows: Sequence[SamplingRow]) -> np.ndarray:
    """The winning block of each row, then the winning token inside it; ``grid`` [B, blocks, BLOCK]."""
    blocks = sums.shape[-1]
    keys = mx.array([draw_key(row.seed, row.position) for row in rows], dtype=mx.uint32)
    times = np.asarray(exponentials(keys, blocks + BLOCK))
    block = np.argmin(times[:, :blocks] / sums, axis=-1)
    inside = grid[np.arange(len(grid)), block]
    tokens: np.ndarray = block * BLOCK + np.argmin(times[:, blocks:] / inside, axis=-1)
    return tokens
