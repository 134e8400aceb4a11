"""Keyed sampling: one batched draw whose every row depends on its own logits and its own key, and on nothing else.

A token is drawn by an exponential race: with E_i ~ Exp(1) independent, argmin E_i / p_i is i with probability p_i.
That is the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030, section 2) without its outer
logarithm. Racing all 49,152 tokens of a vocabulary costs as many random numbers a row; so blocks of tokens race
first, by the sum of their probabilities, and then the tokens inside the winner: a few hundred numbers a row, and
no running sum whose rounding would cut off the tail.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx

from selfplay_ray.logprobs import log_normalizer, softmax_weights

BLOCK = 256
MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """How one row is sampled: the ``position``-th draw of ``seed`` (64 bits), at ``temperature`` (0 is greedy).

    ``banned`` tokens have probability 0; ``top`` of the likeliest are told beside the one drawn.
    """

    seed: int
    temperature: float
    position: int
    banned: Collection[int] = ()
    top: int = 0


def draw_key(seed: int, position: int) -> tuple[int, int]:
    """The two 32-bit halves of the key for draw number ``position`` of ``seed`` (SplitMix64, Steele et al. 2014)."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
    state ^= state >> 31
    return state >> 32, state & 0xFFFFFFFF


def sample(logits: mx.array, rows: Sequence[SamplingRow]) -> tuple[mx.array, mx.array]:
    """Draw one token a row and say how likely it was.

    Args:
        logits: [B, V], any float type; the softmax is taken in float32.
        rows: B of them.

    Returns:
        Tokens, int32[B], and log p(token), float32[B], under the softmax the token was drawn from (temperature
        applied). A greedy row's logprob is that of temperature 1.
    """
    scaled = _scaled(logits, rows)
    weights, normalizer = softmax_weights(scaled)
    tokens = _choose(weights, rows)
    chosen = mx.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - normalizer


def likeliest(logits: mx.array, rows: Sequence[SamplingRow]) -> tuple[mx.array, mx.array]:
    """The tokens a row is most likely to draw, best first, and their logprobs: int32 and float32 [B, K].

    K is the largest ``top`` of ``rows``; arguments and logprobs are those of ``sample``.
    """
    scaled = _scaled(logits, rows)
    best = _largest(scaled, max(row.top for row in rows))
    values = mx.take_along_axis(scaled, best, axis=-1)
    return best.astype(mx.int32), values - log_normalizer(scaled)[:, None]


def _largest(values: mx.array, count: int) -> mx.array:
    """Indices of the ``count`` largest of each row, [B, count], the largest first."""
    if count == 1:
        return mx.argmax(values, axis=-1, keepdims=True)
    best = mx.argpartition(-values, count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(values, best, axis=-1), axis=-1)
    return mx.take_along_axis(best, order, axis=-1)


def _scaled(logits: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    """The logits each row is drawn from, float32[B, V]: at its temperature, without its banned tokens."""
    scaled = logits.astype(mx.float32)
    if any(row.temperature not in (0.0, 1.0) for row in rows):
        scaled = scaled / mx.array([row.temperature or 1.0 for row in rows])[:, None]
    size = scaled.shape[-1]
    banned = [(index, token) for index, row in enumerate(rows) for token in row.banned if 0 <= token < size]
    if banned:
        scaled[mx.array([row for row, _ in banned]), mx.array([token for _, token in banned])] = -mx.inf
    return scaled


def _choose(weights: mx.array, rows: Sequence[SamplingRow]) -> mx.array:
    greedy = [row.temperature == 0 for row in rows]
    if all(greedy):
        return mx.argmax(weights, axis=-1).astype(mx.int32)
    keys = mx.array([draw_key(row.seed, row.position) for row in rows], dtype=mx.uint32)
    drawn = _race_blocks(weights, keys)
    if not any(greedy):
        return drawn
    return mx.where(mx.array(greedy), mx.argmax(weights, axis=-1).astype(mx.int32), drawn)


def _race_blocks(weights: mx.array, keys: mx.array) -> mx.array:
    """The winning block of each row, then the winning token inside it: int32[B].

    ``weights`` [B, V] are probabilities up to a factor a row; ``keys`` are uint32[B, 2].
    """
    batch, vocabulary = weights.shape
    blocks = -(-vocabulary // BLOCK)
    padded = mx.pad(weights, [(0, 0), (0, blocks * BLOCK - vocabulary)])
    grid = padded.reshape(batch, blocks, BLOCK)
    times = exponentials(keys, blocks + BLOCK)
    block = mx.argmin(times[:, :blocks] / grid.sum(axis=-1), axis=-1)
    inside = mx.take_along_axis(grid, block[:, None, None], axis=1)[:, 0]
    token = mx.argmin(times[:, blocks:] / inside, axis=-1)
    return (block * BLOCK + token).astype(mx.int32)


def exponentials(keys: mx.array, count: int) -> mx.array:
    """Exp(1) variates, float32[B, count], fine enough near 0 (steps of 2^-32) for tokens as rare as that to win."""
    uniform = mx.vmap(lambda key: mx.random.uniform(shape=(count,), key=key))(keys)
    # Never exactly 0: a token of probability 0 must lose, and 0 / 0 would be no number.
    return -mx.log1p(-mx.maximum(uniform, 2.0**-33))
