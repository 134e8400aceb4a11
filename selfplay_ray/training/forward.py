"""The forward pass of training: the logprob of every trained token, running as little as gives the same gradient.

Tokens that records have in common are run once, and what follows attends to their keys and values, with the
gradient flowing back through them; the LM head, a third of a small model's work, runs on trained positions alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, make_prompt_cache

from selfplay_ray.errors import TrainingError
from selfplay_ray.logprobs import log_normalizer
from selfplay_ray.training.batching import MicroBatch, plan_step
from selfplay_ray.training.page_cache import PageCache, PassContext
from selfplay_ray.training.recompute import recomputed
from selfplay_ray.types import PolicySpan, TrainingRecord

logger = logging.getLogger(__name__)

HEAD_CHUNK = 128
"""Positions that go through the LM head at once; more are done in turn."""


class TokenScores(NamedTuple):
    """Of every trained token, [R, T] float32, 0 where nothing is trained; both at the token's temperature.

    ``entropies`` are those of the distribution it was drawn from, in nats; None unless asked for.
    """

    logprobs: mx.array
    entropies: mx.array | None


class Forward(Protocol):
    """Scores the trained tokens of a micro-batch under ``model``."""

    @property
    def shared(self) -> bool:
        """How the step is to be planned: ``plan_step(..., shared=forward.shared)``."""
        ...

    def __call__(
        self, model: nn.Module, batch: MicroBatch, *, entropies: bool = False, gradient: bool = True
    ) -> TokenScores:
        """``gradient=False`` says that none will be asked for, which spares half of the head's work."""
        ...


@dataclass(frozen=True, slots=True)
class TreeForward:
    """Runs shared tokens once, and the LM head on trained positions only.

    ``additive_mask`` masks by adding float32 numbers, which MLX takes only where the model computes in float32.
    """

    additive_mask: bool = False
    shared = True

    def __call__(
        self, model: nn.Module, batch: MicroBatch, *, entropies: bool = False, gradient: bool = True
    ) -> TokenScores:
        caches = [PageCache() for _ in model.layers]
        hidden: list[mx.array] = []
        rows = 0
        for run in batch.passes:
            context = PassContext.of(run, rows, self.additive_mask)
            for cache in caches:
                cache.context = context
            passed = model.model(mx.array(run.inputs), cache=caches)  # [S, width, hidden]
            hidden.append(passed.reshape(-1, passed.shape[-1]))
            rows += run.inputs.shape[0]
        queries = _Queries.of(batch)
        return queries.spread(_head_scores(model, mx.concatenate(hidden), queries, entropies, gradient))


@dataclass(frozen=True, slots=True)
class PlainForward:
    """The model's own full forward pass: every row a whole sequence, logits at every position."""

    shared = False

    def __call__(
        self, model: nn.Module, batch: MicroBatch, *, entropies: bool = False, gradient: bool = True
    ) -> TokenScores:
        if len(batch.passes) != 1 or batch.passes[0].context.shape[1]:
            raise TrainingError("a plain forward pass takes steps that were planned with shared=False")
        logits = model(mx.array(batch.passes[0].inputs))
        queries = _Queries.of(batch)
        asked = logits.reshape(-1, logits.shape[-1])[mx.array(queries.positions)]
        return queries.spread(_scores(asked, queries.targets, queries.temperatures, entropies))


def choose_forward(model: nn.Module) -> Forward:
    """``TreeForward`` where it computes what the model does, else ``PlainForward``, saying so.

    Besides looking at the model's cache and parts, it compares both on a few tokens: some models scale or cap
    what goes into or comes out of their head, or want their positions told otherwise.
    """
    reason = _why_not_shared(model)
    if reason is None:
        return TreeForward(_computes_in_float32(model))
    logger.warning("prompts are run once for every completion, which costs several times more: %s", reason)
    return PlainForward()


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """What the head is asked, each question once: of N positions, their targets and temperatures, [N].

    ``answers`` [tokens] says which of them answers each trained token of ``batch``, in order.
    """

    batch: MicroBatch
    positions: np.ndarray
    targets: mx.array
    temperatures: mx.array
    answers: np.ndarray

    @classmethod
    def of(cls, batch: MicroBatch) -> _Queries:
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


def _head_scores(
    model: nn.Module, hidden: mx.array, queries: _Queries, entropies: bool, gradient: bool
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
            return _scores(_head(model, rows), queries.targets[cut], queries.temperatures[cut], entropies)

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


def _scores(logits: mx.array, targets: mx.array, temperatures: mx.array, entropies: bool) -> TokenScores:
    """log softmax(logits / T)[target] and the entropy, [N], in float32 whatever the model computes in."""
    scaled = logits.astype(mx.float32) / temperatures[:, None]
    normalizer = log_normalizer(scaled)
    logprobs = mx.take_along_axis(scaled, targets[:, None], axis=-1)[:, 0] - normalizer
    if not entropies:
        return TokenScores(logprobs, None)
    # H = log Σ exp(z) - Σ p z, with p = softmax(z)
    mean = (mx.exp(scaled - normalizer[:, None]) * scaled).sum(axis=-1)
    return TokenScores(logprobs, normalizer - mean)


def vocabulary_size(model: nn.Module) -> int:
    """How many tokens the model tells apart, by the width of its logits (nothing is computed)."""
    return int(model(mx.array([[0]])).shape[-1])


def _computes_in_float32(model: nn.Module) -> bool:
    return bool(model.model(mx.array([[0]])).dtype == mx.float32)


def _why_not_shared(model: nn.Module) -> str | None:
    """The reason why what records have in common can't be run once on this model, or None."""
    kinds = {type(cache) for cache in make_prompt_cache(model)}
    if kinds != {KVCache}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return f"{type(model).__name__} keeps its context in {names}"
    if "model" not in model or not ("lm_head" in model or "embed_tokens" in model.model):
        return f"{type(model).__module__} is not laid out as body and LM head"
    try:
        difference = _difference(model)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(model).__module__} does not take its context in pages ({error})"
    # Rounding alone: 1e-5 in float32, a few hundredths in bfloat16. A capped or scaled head differs by far more.
    tolerance = 1e-3 if _computes_in_float32(model) else 0.2
    return None if difference < tolerance else f"its logprobs would change by {difference:.2g}"


def _difference(model: nn.Module) -> float:
    """The largest between the logprobs of both ways, on two samples that begin alike and fill several pages."""
    prompt = (1, 2, 3, 4, 5, 6, 7, 3, 5, 1, 2, 6)
    records = [_probe("a", prompt, (4, 5, 6, 7) * 3), _probe("b", prompt, (7, 5, 7, 4, 6) * 4)]
    ways: tuple[Forward, ...] = (TreeForward(_computes_in_float32(model)), PlainForward())
    logprobs = []
    for way in ways:
        (batch,) = plan_step(records, 1000, 1000, shared=way.shared).batches
        # In either plan the records may stand in another order.
        rows = np.array(way(model, batch).logprobs)
        logprobs.append(np.sort(rows[batch.mask]))
    return float(np.abs(logprobs[0] - logprobs[1]).max())


def _probe(id: str, prompt: tuple[int, ...], completion: tuple[int, ...]) -> TrainingRecord:
    length = len(completion)
    return TrainingRecord(
        id=id,
        role_id="probe",
        rollout_id=id,
        episode_type="probe",
        prompt_token_ids=prompt,
        completion_token_ids=completion,
        logprobs=(0.0,) * length,
        action_mask=(True,) * length,
        spans=(PolicySpan(0, length, 0),),
        temperature=1.0,
        reward=0.0,
        advantage=1.0,
    )
