"""What the LM head is asked and answers: the logprob of every trained token, without its logits all in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from selfplay_ray.logprobs import log_normalizer
from selfplay_ray.training.micro_batch import MicroBatch
from selfplay_ray.training.recompute import recomputed

HEAD_CHUNK = 128
"""Positions that go through the LM head at once; more are done in turn."""


class TokenScores(NamedTuple):
    """Of every trained token, [R, T] float32, 0 where nothing is trained; both at the token's temperature.

    ``entropies`` are those of the distribution it was drawn from, in nats; None unless asked for.
    """

    logprobs: mx.array
    entropies: mx.array | None


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """What the head is asked, each question once: of N positions, their targets and temperatures, [N].

    ``answers`` [tokens] says which of them answers each trained token of ``batch``, in order.
    """

    batch: MicroBatch
    positions: np.ndarray
    targets: mx.array
    temperatures: mx.array
    answers: np.ndarray

    @classmethod
    def of(cls, batch: MicroBatch) -> Queries:
        columns = (batch.positions, batch.targets, batch.temperatures)
        asked = np.stack([column[batch.mask].astype(np.float64) for column in columns])
        different, answers = np.unique(asked, axis=1, return_inverse=True)
        positions, targets, temperatures = different
        return cls(
            batch,
            positions.astype(np.int32),
            mx.array(targets.astype(np.int32)),
            mx.array(temperatures.astype(np.float32)),
            answers.reshape(-1),
        )

    def spread(self, scores: TokenScores) -> TokenScores:
        """From one number for each question, [N], to each trained token's, [R, T]."""
        logprobs, entropies = scores
        return TokenScores(self._spread(logprobs), None if entropies is None else self._spread(entropies))

    def _spread(self, values: mx.array) -> mx.array:
        mask = self.batch.mask
        zeros = mx.zeros(mask.size)
        return (
            zeros.at[mx.array(np.flatnonzero(mask))].add(values[mx.array(self.answers)]).reshape(mask.shape)
        )


def head_scores(
    model: nn.Module, hidden: mx.array, queries: Queries, entropies: bool, gradient: bool
) -> TokenScores:
    """Scores [N] from ``hidden`` [tokens, width], the logits never all in memory at once."""
    chunks: list[TokenScores] = []
    for start in range(0, len(queries.positions), HEAD_CHUNK):
        cut = slice(start, start + HEAD_CHUNK)
        rows = hidden[mx.array(queries.positions[cut])]
        if chunks:
            rows = mx.depends(
                rows, chunks[-1].logprobs
            )  # in turn, or MLX would begin with all chunks at once

        # Targets are closed over: what is recomputed is differentiated by all it is passed, indices have no gradient.
        def compute(rows: mx.array, cut: slice = cut) -> TokenScores:
            return token_scores(
                _head(model, rows), queries.targets[cut], queries.temperatures[cut], entropies
            )

        if not gradient:
            chunks.append(compute(rows))
        elif tree_flatten(_head_module(model).trainable_parameters()):
            chunks.append(recomputed(_head_module(model), compute)(rows))
        else:
            chunks.append(_linearized(compute, rows, entropies))
    logprobs = mx.concatenate([chunk.logprobs for chunk in chunks])
    asked = [chunk.entropies for chunk in chunks if chunk.entropies is not None]
    return TokenScores(logprobs, mx.concatenate(asked) if asked else None)


def _linearized(compute: Callable[[mx.array], TokenScores], rows: mx.array, entropies: bool) -> TokenScores:
    """``compute(rows)`` with its gradient taken on the way, so that no logits are kept or computed again for it.

    A score depends on its own row alone, so one pass back with ones for cotangents gives every row's gradient.
    The gradient of what ``compute`` reads besides ``rows`` is dropped: the head must be frozen.
    """
    constant = mx.stop_gradient(rows)

    def score(index: int) -> mx.array:
        (values,), (slopes,) = mx.vjp(lambda r: [compute(r)[index]], [constant], [mx.ones(rows.shape[:1])])
        nothing = (mx.stop_gradient(slopes) * (rows - constant)).sum(axis=-1)  # but it has the gradient
        return mx.stop_gradient(values) + nothing

    return TokenScores(score(0), score(1) if entropies else None)


def _head(model: nn.Module, hidden: mx.array) -> mx.array:
    head = _head_module(model)
    logits: mx.array = head(hidden) if "lm_head" in model else head.as_linear(hidden)
    return logits


def _head_module(model: nn.Module) -> nn.Module:
    head: nn.Module = model.lm_head if "lm_head" in model else model.model.embed_tokens
    return head


def token_scores(logits: mx.array, targets: mx.array, temperatures: mx.array, entropies: bool) -> TokenScores:
    """log softmax(logits / T)[target] and the entropy, [N], in float32 whatever the model computes in."""
    scaled = logits.astype(mx.float32) / temperatures[:, None]
    normalizer = log_normalizer(scaled)
    logprobs = mx.take_along_axis(scaled, targets[:, None], axis=-1)[:, 0] - normalizer
    if not entropies:
        return TokenScores(logprobs, None)
    # H = log Σ exp(z) - Σ p z, with p = softmax(z)
    mean = (mx.exp(scaled - normalizer[:, None]) * scaled).sum(axis=-1)
    return TokenScores(logprobs, normalizer - mean)
