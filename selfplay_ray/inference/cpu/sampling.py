"""The draw of ``selfplay_ray.inference.sampling``, in NumPy: the same race with the same keys. What is told of the
likeliest tokens is normalized as the draw is, so that a token's logprob is the same number in both."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from selfplay_ray.inference.cpu.cores import Cores, Share
from selfplay_ray.inference.sampling import BLOCK, SamplingRow, draw_key, exponentials


def sample(logits: np.ndarray, rows: Sequence[SamplingRow], cores: Cores) -> tuple[np.ndarray, np.ndarray]:
    """Draw one token a row and say how likely it was: int32[B] and float32[B], of logits float32[B, V]."""
    scaled = _scaled(logits, rows)
    largest, sums = _weights(scaled, cores)
    greedy = np.array([row.temperature == 0 for row in rows])
    tokens = scaled.argmax(axis=-1) if greedy.any() else np.zeros(len(scaled), dtype=np.int64)
    with np.errstate(all="ignore"):  # what has no probability never arrives
        if not greedy.all():
            tokens = np.where(greedy, tokens, _race(scaled, largest, sums, rows))
        logprobs = scaled[np.arange(len(scaled)), tokens] - _normalizers(largest, sums)
    return tokens.astype(np.int32), logprobs


def likeliest(logits: np.ndarray, rows: Sequence[SamplingRow], cores: Cores) -> tuple[np.ndarray, np.ndarray]:
    """The tokens a row is most likely to draw, best first, and their logprobs: int32 and float32 [B, K], of logits
    float32[B, V]. K is the largest ``top`` of ``rows``."""
    scaled = _scaled(logits, rows)
    largest, sums = _weights(scaled, cores)
    count = max(row.top for row in rows)
    best = np.sort(np.argpartition(-scaled, count - 1, axis=-1)[:, :count], axis=-1)
    order = np.argsort(-np.take_along_axis(scaled, best, axis=-1), axis=-1, kind="stable")
    best = np.take_along_axis(best, order, axis=-1)
    with np.errstate(all="ignore"):  # as in a draw
        logprobs = np.take_along_axis(scaled, best, axis=-1) - _normalizers(largest, sums)[:, None]
    return best.astype(np.int32), logprobs


def _normalizers(largest: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The log of the sum of each row's exponentials [B]."""
    normalizers: np.ndarray = largest + np.log(sums.sum(axis=-1))
    return normalizers


def _weights(scaled: np.ndarray, cores: Cores) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each row's logits [B], and the sum of each block's weights, the likeliest token's being 1:
    [B, blocks]."""
    batch, vocabulary = scaled.shape
    largest = np.empty(batch, dtype=np.float32)
    sums = np.empty((batch, -(-vocabulary // BLOCK)), dtype=np.float32)

    def sum_up(share: Share) -> None:
        every = share.of(batch)
        for row in range(every.start, every.stop):  # one by one they stay in a core's cache
            largest[row] = scaled[row].max()
            sums[row] = _block_sums(scaled[row], largest[row])

    cores.run("sampling", sum_up)
    return largest, sums


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
