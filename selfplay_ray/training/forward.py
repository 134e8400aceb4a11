"""The forward pass of training: the logprob of every trained token, running as little as gives the same gradient.

The prefix that rows share is run once and its keys and values are broadcast over them, with the gradient
flowing back through both; the LM head, a third of a small model's work, runs on trained positions alone.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, make_prompt_cache

from selfplay_ray.logprobs import log_normalizer
from selfplay_ray.training.batching import MicroBatch

logger = logging.getLogger(__name__)

HEAD_CHUNK = 1024
"""Positions that go through the LM head at once; more are done in turns, each redone in the backward pass."""


class Forward(Protocol):
    """Computes the logprobs of a micro-batch under ``model``: [R, T] float32, 0 where nothing is trained."""

    def __call__(self, model: nn.Module, batch: MicroBatch) -> mx.array: ...


class PrefixCache:
    """Keys and values as mlx-lm's attention layers expect them of a cache, but visible to autograd.

    It has no slots to write into: what comes in is appended to the prefix, which is broadcast over the rows.
    Never wrap a layer that reads from this object in gradient checkpointing: the prefix's gradient is then
    dropped without a word, and the loss still looks right. Pass keys and values as arguments instead.
    """

    def __init__(self, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        self.keys = keys  # [rows or 1, kv_heads, length, head_dim]
        self.values = values

    @property
    def offset(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None and self.values is not None:
            rows = keys.shape[0]
            prefix_keys = mx.broadcast_to(self.keys, (rows, *self.keys.shape[1:]))
            prefix_values = mx.broadcast_to(self.values, (rows, *self.values.shape[1:]))
            keys = mx.concatenate([prefix_keys, keys], axis=2)
            values = mx.concatenate([prefix_values, values], axis=2)
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        if self.offset == 0 and window_size is None and not return_array:
            return "causal"
        return create_causal_mask(n, self.offset, window_size=window_size)


def choose_forward(model: nn.Module) -> Forward:
    """``shared_prefix_logprobs`` where it computes what the model does, else ``plain_logprobs``, saying so.

    Besides looking at the model's cache and parts, it compares both on a few tokens: some models scale or cap
    what goes into or comes out of their head.
    """
    reason = _why_not_shared(model)
    if reason is None:
        return shared_prefix_logprobs
    logger.warning("prompts are run once for every completion, which costs several times more: %s", reason)
    return plain_logprobs


def shared_prefix_logprobs(model: nn.Module, batch: MicroBatch) -> mx.array:
    """Logprobs [R, T] with the prefix run once and the LM head on trained positions only."""
    caches = None
    if batch.prefix.size:
        caches = [PrefixCache() for _ in model.layers]
        model.model(mx.array(batch.prefix[None]), cache=caches)
    hidden = model.model(mx.array(batch.inputs), cache=caches)  # [R, T, width]
    positions = np.flatnonzero(batch.mask)
    trained = hidden.reshape(-1, hidden.shape[-1])[mx.array(positions)]
    targets, temperatures = _at(batch.targets, positions), _at(batch.temperatures, positions)
    return _spread(_head_logprobs(model, trained, targets, temperatures), positions, batch.mask.shape)


def plain_logprobs(model: nn.Module, batch: MicroBatch) -> mx.array:
    """Logprobs [R, T] by the model's own full forward pass, the prefix repeated for every row."""
    rows, prefix = batch.inputs.shape[0], batch.prefix
    tokens = np.concatenate([np.broadcast_to(prefix, (rows, prefix.size)), batch.inputs], axis=1)
    logits = model(mx.array(tokens))[:, prefix.size :]
    positions = np.flatnonzero(batch.mask)
    trained = logits.reshape(-1, logits.shape[-1])[mx.array(positions)]
    targets, temperatures = _at(batch.targets, positions), _at(batch.temperatures, positions)
    return _spread(_token_logprobs(trained, targets, temperatures), positions, batch.mask.shape)


def _head_logprobs(model: nn.Module, hidden: mx.array, targets: mx.array, temperatures: mx.array) -> mx.array:
    """Logprobs [N] of ``targets`` [N] from ``hidden`` [N, width], the logits never all in memory at once."""

    def chunk_logprobs(cut: slice) -> mx.array:
        def compute(hidden: mx.array) -> mx.array:
            return _token_logprobs(_head(model, hidden), targets[cut], temperatures[cut])

        # Targets are closed over: checkpoint differentiates all it is passed, and indices have no gradient.
        redone: mx.array = mx.checkpoint(compute)(hidden[cut])
        return redone

    tokens = hidden.shape[0]
    if tokens <= HEAD_CHUNK:
        return _token_logprobs(_head(model, hidden), targets, temperatures)
    cuts = [slice(start, start + HEAD_CHUNK) for start in range(0, tokens, HEAD_CHUNK)]
    return mx.concatenate([chunk_logprobs(cut) for cut in cuts])


def _head(model: nn.Module, hidden: mx.array) -> mx.array:
    logits: mx.array
    logits = model.lm_head(hidden) if "lm_head" in model else model.model.embed_tokens.as_linear(hidden)
    return logits


def _token_logprobs(logits: mx.array, targets: mx.array, temperatures: mx.array) -> mx.array:
    """log softmax(logits / T)[target], [N], in float32 whatever the model computes in."""
    scaled = logits.astype(mx.float32) / temperatures[:, None]
    return mx.take_along_axis(scaled, targets[:, None], axis=-1)[:, 0] - log_normalizer(scaled)


def _at(values: np.ndarray, positions: np.ndarray) -> mx.array:
    return mx.array(values.reshape(-1)[positions])


def _spread(values: mx.array, positions: np.ndarray, shape: tuple[int, ...]) -> mx.array:
    """Put ``values`` [N] at ``positions`` of a flattened array of ``shape`` that is 0 elsewhere."""
    return mx.zeros(int(np.prod(shape))).at[mx.array(positions)].add(values).reshape(shape)


def _why_not_shared(model: nn.Module) -> str | None:
    """The reason why prompts can't be shared on this model, or None."""
    kinds = {type(cache) for cache in make_prompt_cache(model)}
    if kinds != {KVCache}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return f"{type(model).__name__} keeps its context in {names}"
    if "model" not in model or not ("lm_head" in model or "embed_tokens" in model.model):
        return f"{type(model).__module__} is not laid out as body and LM head"
    batch = _probe_batch()
    with_prefix, repeated = shared_prefix_logprobs(model, batch), plain_logprobs(model, batch)
    difference = float(np.abs(np.array(with_prefix) - np.array(repeated)).max())
    # Rounding alone: 1e-5 in float32, a few hundredths in bfloat16. A capped or scaled head differs by far more.
    tolerance = 1e-3 if model.model(mx.array([[0]])).dtype == mx.float32 else 0.2
    return None if difference < tolerance else f"its logprobs would change by {difference:.2g}"


def vocabulary_size(model: nn.Module) -> int:
    """How many tokens the model tells apart, by the width of its logits (nothing is computed)."""
    return int(model(mx.array([[0]])).shape[-1])


def _probe_batch() -> MicroBatch:
    """Two short rows behind a prefix, tokens every vocabulary has."""
    inputs = np.array([[4, 5, 6, 7], [5, 7, 4, 6]], np.int32)
    return MicroBatch(
        prefix=np.array([1, 2, 3], np.int32),
        inputs=inputs,
        targets=np.roll(inputs, -1, axis=1),
        mask=np.ones(inputs.shape, np.bool_),
        behaviour_logprobs=np.zeros(inputs.shape, np.float32),
        advantages=np.ones(inputs.shape, np.float32),
        temperatures=np.ones(inputs.shape, np.float32),
        versions=np.zeros(inputs.shape, np.int32),
    )
