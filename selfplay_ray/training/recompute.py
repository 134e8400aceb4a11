"""Gradient checkpointing: what a layer computes is computed again in the backward pass, not kept until then.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), with a segment a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx import nn

from selfplay_ray.training.page_cache import PageCache

Arrays = tuple[mx.array, ...]
Outcome = TypeVar("Outcome")


def recompute_layers(model: nn.Module) -> None:
    """Make every layer of this ``model``, and of no other, keep its inputs only: less memory, a pass more of time.

    Nothing else about the model changes: not its parameters' names, not what it computes.
    """
    for layer in model.layers:
        kind = type(layer)
        # Python looks ``__call__`` up on the type, so an instance that is to differ needs one of its own.
        layer.__class__ = type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})


def recomputed(module: nn.Module, compute: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """``compute``, which runs ``module``, to be run again in the backward pass with the arrays it is called with.

    What a checkpointed function reads from elsewhere gets no gradient, and nothing says so. So the module's trainable
    parameters are handed over as arguments too; whatever else has a gradient must be an argument of ``compute``.
    """

    def with_parameters(parameters: dict[str, Any], *arrays: Any) -> Outcome:
        own = module.trainable_parameters()
        module.update(parameters)
        try:
            return compute(*arrays)
        finally:
            module.update(own)

    return partial(mx.checkpoint(with_parameters), module.trainable_parameters())


class _Recomputed(nn.Module):
    """A layer that is recomputed, its keys and values among the arguments and the results of what is."""

    def __call__(self, x: mx.array, mask: Any = None, cache: PageCache | None = None) -> mx.array:
        layer = super().__call__
        if cache is None:
            return recomputed(self, lambda x: cast(mx.array, layer(x, mask)))(x)
        context = cache.context

        def compute(x: mx.array, before: Arrays) -> tuple[mx.array, Arrays]:
            # The second time around the cache has long moved on to the last pass.
            cache.state, cache.context = before, context
            return layer(x, mask, cache=cache), cache.state

        outcome, cache.state = recomputed(self, compute)(x, cache.state)
        return outcome
