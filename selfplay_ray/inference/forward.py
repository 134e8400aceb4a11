"""The forward pass and the draw of a batch: by MLX, or on a CPU, for the models it knows, compiled and by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import maybe_set_recommended_wired_limit

from selfplay_ray.inference.cpu.cores import Cores, allowed
from selfplay_ray.inference.cpu.kv_cache import BatchKV, SequenceKV
from selfplay_ray.inference.cpu.sampling import likeliest as likeliest_in_numpy
from selfplay_ray.inference.cpu.sampling import sample as sample_in_numpy
from selfplay_ray.inference.kv_cache import AlikeRows, RoomyBatchKVCache, are_roomy, with_room
from selfplay_ray.inference.sampling import SamplingRow, likeliest, sample

LayerCaches = list[Any]
"""Caches of a sequence or of a batch, in the protocol of mlx-lm's: one a layer, or one for all layers."""

TIDIED = 512
"""Steps after which MLX gives back what memory it has ready."""

Sampled = tuple[mx.array, mx.array]


class Logits(Protocol):
    """The logits of a batch, computed when they are drawn from: nobody draws from a prefill's."""

    def draw(self, rows: Sequence[SamplingRow]) -> Sampled:
        """What ``sampling.sample`` does with them."""
        ...

    def likeliest(self, asking: Sequence[int], rows: Sequence[SamplingRow]) -> Sampled:
        """What ``sampling.likeliest`` does with those of some rows."""
        ...


class Forward(Protocol):
    """Runs a model on batches, of which it makes the caches; ``lazy``, if what it returns is computed while others do
    something else; ``pads``, if in a prefill all rows cost as much as the longest."""

    lazy: bool
    pads: bool

    def new_caches(self) -> LayerCaches:
        """Empty caches for one sequence."""
        ...

    def growing(self, caches: LayerCaches, longest: int) -> LayerCaches:
        """``caches`` of a sequence that may come to hold ``longest`` positions."""
        ...

    def kv_bytes(self) -> tuple[int, int]:
        """Bytes that a sequence takes for each of its tokens, and besides."""
        ...

    def join(self, caches: LayerCaches, sequences: Sequence[LayerCaches]) -> LayerCaches:
        """Those of a batch, empty if that has no rows, with a row more for each of ``sequences``, which are copied."""
        ...

    def compact(self, caches: LayerCaches) -> None:
        """Let a batch take no more memory than its rows need."""
        ...

    def prefill(self, tokens: Sequence[Sequence[int]], caches: LayerCaches) -> None:
        """Let each row go on with its ``tokens``, at least one; the caches grow."""
        ...

    def decode(self, tokens: mx.array, caches: LayerCaches) -> Logits:
        """The logits after one more token a row, int32[B]; the caches grow."""
        ...

    def decode_one_of_each(
        self, tokens: mx.array, caches: LayerCaches, first: Sequence[int], kinds: Sequence[int]
    ) -> Logits:
        """The same where rows of a kind, an index into ``first``, are alike and only these are run."""
        ...

    def shares(self, caches: LayerCaches) -> bool:
        """Whether ``decode_one_of_each`` knows such caches."""
        ...

    def take_weights(self) -> None:
        """The model's weights are other arrays now."""
        ...

    def close(self) -> None:
        """Give back its threads."""
        ...


def forward_of(model: nn.Module) -> Forward:
    """The fastest way there is here to run ``model``."""
    if mx.default_device() != mx.Device(mx.cpu):
        return MLXForward(model)
    from selfplay_ray.inference.cpu.compiled import COMPILES
    from selfplay_ray.inference.cpu.llama import accepts

    return CompiledForward(model) if COMPILES and accepts(model) else MLXForward(model)


@dataclass(frozen=True, slots=True)
class MLXLogits:
    values: mx.array

    def draw(self, rows: Sequence[SamplingRow]) -> Sampled:
        return sample(self.values, rows)

    def likeliest(self, asking: Sequence[int], rows: Sequence[SamplingRow]) -> Sampled:
        return likeliest(self.values[mx.array(list(asking))], rows)


class MLXForward:
    """mlx-lm's own forward pass of any of its models."""

    lazy = pads = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._wired = maybe_set_recommended_wired_limit()
        self._steps = 0

    def new_caches(self) -> LayerCaches:
        return with_room(make_prompt_cache(self._model))

    def growing(self, caches: LayerCaches, longest: int) -> LayerCaches:
        return caches

    def kv_bytes(self) -> tuple[int, int]:
        caches = self.new_caches()
        self._model(mx.zeros((1, 1), dtype=mx.int32), cache=caches)
        growing = [cache for cache in caches if getattr(cache, "keys", None) is not None]
        constant = [cache for cache in caches if getattr(cache, "keys", None) is None]
        return sum(int(c.nbytes) // c.keys.shape[2] for c in growing), sum(int(c.nbytes) for c in constant)

    def join(self, caches: LayerCaches, sequences: Sequence[LayerCaches]) -> LayerCaches:
        merged = [layer[0].merge(layer) for layer in map(list, zip(*sequences, strict=True))]
        for cache, more in zip(caches, merged, strict=bool(caches)):
            cache.extend(more)
        return caches or merged

    def compact(self, caches: LayerCaches) -> None:
        """They do so whenever a row leaves."""

    def prefill(self, tokens: Sequence[Sequence[int]], caches: LayerCaches) -> None:
        lengths = [len(row) for row in tokens]
        padding = [max(lengths) - length for length in lengths]
        if any(padding):
            for cache in caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        padded = [[*row, *[0] * more] for row, more in zip(tokens, padding, strict=True)]
        self._model(mx.array(padded), cache=caches)
        if any(padding):
            for cache in caches:
                cache.finalize()
        mx.eval([cache.state for cache in caches])
        mx.clear_cache()

    def decode(self, tokens: mx.array, caches: LayerCaches) -> MLXLogits:
        self._steps += 1
        if self._steps % TIDIED == 0:
            mx.clear_cache()
        return MLXLogits(self._model(tokens[:, None], cache=caches)[:, -1])

    def decode_one_of_each(
        self, tokens: mx.array, caches: LayerCaches, first: Sequence[int], kinds: Sequence[int]
    ) -> MLXLogits:
        some, every = mx.array(list(first)), mx.array(list(kinds))
        layers = cast(Sequence[RoomyBatchKVCache], caches)
        alike = [AlikeRows(layer, some, every) for layer in layers]
        logits = self._model(tokens[some][:, None], cache=alike)
        return MLXLogits(logits[:, -1][every])

    def shares(self, caches: LayerCaches) -> bool:
        return are_roomy(caches)

    def take_weights(self) -> None:
        """It keeps none."""

    def close(self) -> None:
        """It has no threads; gives back the memory that was wired."""
        if self._wired is not None:
            mx.synchronize()
            mx.set_wired_limit(self._wired)
            self._wired = None


class NumPyLogits:
    """The logits of hidden states; row b of the batch has those of state ``kinds[b]``."""

    def __init__(
        self, forward: CompiledForward, hidden: np.ndarray, kinds: Sequence[int] | None = None
    ) -> None:
        self._forward, self._hidden, self._kinds = forward, hidden, kinds
        self._values: np.ndarray | None = None

    def draw(self, rows: Sequence[SamplingRow]) -> Sampled:
        tokens, logprobs = sample_in_numpy(self._computed(), rows, self._forward.cores)
        return mx.array(tokens), mx.array(logprobs)

    def likeliest(self, asking: Sequence[int], rows: Sequence[SamplingRow]) -> Sampled:
        tokens, logprobs = likeliest_in_numpy(self._computed()[list(asking)], rows, self._forward.cores)
        return mx.array(tokens), mx.array(logprobs)

    def _computed(self) -> np.ndarray:
        if self._values is None:
            logits = self._forward.logits(self._hidden)
            self._values = logits if self._kinds is None else logits[list(self._kinds)]
        return self._values


class CompiledForward:
    """A model that ``llama.accepts``, run by as many threads as a BLAS would take."""

    lazy = pads = False

    def __init__(self, model: nn.Module) -> None:
        self._model, self.cores = model, Cores(1)
        self.take_weights()
        # Now, so that no request waits for the compiler; and by one thread, for which no other waits if it fails.
        self._llama.logits(self._run([[0]], BatchKV.of(self.new_caches())))
        self.cores = Cores(allowed())
        self.take_weights()

    def take_weights(self) -> None:
        from selfplay_ray.inference.cpu.llama import CompiledLlama

        self._llama = CompiledLlama(self._model, self.cores)

    def new_caches(self) -> LayerCaches:
        return [SequenceKV.new(self._llama.depth, self._llama.heads, self._llama.width)]

    def growing(self, caches: LayerCaches, longest: int) -> LayerCaches:
        return [cache.growing_to(longest) for cache in caches]

    def kv_bytes(self) -> tuple[int, int]:
        return self._llama.depth * self._llama.heads * self._llama.width * 2 * 4, 0

    def join(self, caches: LayerCaches, sequences: Sequence[LayerCaches]) -> LayerCaches:
        rows = [sequence for (sequence,) in sequences]
        if not caches:
            return [BatchKV.of(rows)]
        caches[0].append(rows)
        return caches

    def compact(self, caches: LayerCaches) -> None:
        caches[0].compact()

    def prefill(self, tokens: Sequence[Sequence[int]], caches: LayerCaches) -> None:
        self._run(tokens, caches[0])

    def decode(self, tokens: mx.array, caches: LayerCaches) -> NumPyLogits:
        return NumPyLogits(self, self._run(np.asarray(tokens)[:, None], caches[0]))

    def decode_one_of_each(
        self, tokens: mx.array, caches: LayerCaches, first: Sequence[int], kinds: Sequence[int]
    ) -> NumPyLogits:
        batch: BatchKV = caches[0]
        some = batch.take(first)
        hidden = self._run(np.asarray(tokens)[list(first), None], some)
        batch.append_last(some, kinds)
        return NumPyLogits(self, hidden, kinds)

    def shares(self, caches: LayerCaches) -> bool:
        return True

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """float32[B, V] of hidden states [B, hidden]."""
        return self._llama.logits(hidden)

    def close(self) -> None:
        self.cores.close()

    def _run(self, tokens: Sequence[Sequence[int]] | np.ndarray, batch: BatchKV) -> np.ndarray:
        return self._llama.run(tokens, batch)
