"""The forward pass of training: the logprob of every trained token, running as little as gives the same gradient.

Tokens that records have in common are run once, and what follows attends to their keys and values, with the
gradient flowing back through them; the LM head, a third of a small model's work, runs on trained positions alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import KVCache, make_prompt_cache

from selfplay_ray.errors import TrainingError
from selfplay_ray.training.batching import plan_step
from selfplay_ray.training.head import Queries, TokenScores, head_scores, token_scores
from selfplay_ray.training.micro_batch import MicroBatch
from selfplay_ray.training.page_cache import PageCache, PassContext
from selfplay_ray.types import PolicySpan, TrainingRecord

logger = logging.getLogger(__name__)


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
        queries = Queries.of(batch)
        return queries.spread(head_scores(model, mx.concatenate(hidden), queries, entropies, gradient))


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
        queries = Queries.of(batch)
        asked = logits.reshape(-1, logits.shape[-1])[mx.array(queries.positions)]
        return queries.spread(token_scores(asked, queries.targets, queries.temperatures, entropies))


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
