"""The softmax's normalizer, summed so that float32 is enough."""

from __future__ import annotations

import math

import mlx.core as mx

BLOCK = 256
"""Terms added up at a time; the sums of the blocks are then added up in turn."""


def log_normalizer(logits: mx.array) -> mx.array:
    """log Σ exp(logits) over the last axis, [..., V] to [...], in float32 whatever comes in.

    On the CPU, MLX's ``logsumexp`` and ``softmax`` add a vocabulary up term by term: over 49,152 tokens that
    loses up to 2e-4, always to the same side, where adding blocks and then their sums is within 2e-6. Whoever
    samples and whoever trains must both use this one, or the ratio of a token to itself isn't 1.
    """
    return softmax_weights(logits)[1]


def softmax_weights(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Weights w ∝ softmax(logits), [..., V], the largest of them 1, and ``log_normalizer(logits)``, [...].

    Enough to sample from, at the cost of one exponential a token; log p(token) = logit - normalizer.
    """
    values = logits.astype(mx.float32)
    largest = mx.stop_gradient(values.max(axis=-1, keepdims=True))
    # A power of e is as exact as MLX's exp, and on the CPU, where that runs value by value, takes half its time.
    weights = mx.power(math.e, values - largest)
    return weights, largest[..., 0] + mx.log(_sum_in_blocks(weights))


def _sum_in_blocks(values: mx.array) -> mx.array:
    whole = values.shape[-1] // BLOCK * BLOCK
    rest = values[..., whole:].sum(axis=-1)
    if not whole:
        return rest
    blocks = values[..., :whole].reshape(*values.shape[:-1], whole // BLOCK, BLOCK)
    return blocks.sum(axis=-1).sum(axis=-1) + rest
