"""Llama's forward pass on a CPU, for the models that are built like it.

Per layer (Touvron et al. 2023, arXiv:2302.13971): h += O attention(rope(Q n(h)), rope(K n(h)), V n(h)), and
h += down(silu(gate n(h)) · up n(h)), n being an RMS norm. It uses the weights of mlx-lm's model where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.rope_utils import Llama3RoPE

from selfplay_ray.inference.cpu.attention import Attention, Projected, Rotations
from selfplay_ray.inference.cpu.cores import ALL, Cores, Share
from selfplay_ray.inference.cpu.kv_cache import BatchKV
from selfplay_ray.inference.cpu.norm import RMSNorm, normed
from selfplay_ray.inference.cpu.products import BLOCK, Linear, Rows

ALIKE = {"mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3"}
"""Where mlx-lm's ``Model`` is what this computes."""

KNOWN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.RoPE, Llama3RoPE)
"""What may hold arrays in such a model."""

ACTIVATED = 1 << 15
"""Values of the activation that are worked on at a time: what stays in a core's cache."""

FEW = 1 << 12
"""Pairs of a token and a position up to which one thread computes attention faster than several."""

Then = Callable[[slice], object]


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one layer."""

    before_attention: RMSNorm
    query: Linear
    key: Linear
    value: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    output: Linear
    before_mlp: RMSNorm
    gate: Linear
    up: Linear
    down: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self.query, self.key, self.value, self.output, self.gate, self.up, self.down


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the layers of one forward pass of N tokens put what they compute: float32[N, …]."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attended: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    added: np.ndarray
    normed: np.ndarray

    @classmethod
    def of(cls, layer: Layer, tokens: int) -> Workspace:
        linears = (
            layer.query,
            layer.key,
            layer.value,
            layer.query,
            layer.gate,
            layer.up,
            layer.down,
            layer.down,
        )
        return cls(*(np.empty((tokens, linear.width), dtype=np.float32) for linear in linears))


class NumPyLlama:
    """mlx-lm's ``model``, run by ``cores``; ``accepts`` tells which models can be.

    The adapters its layers select are computed with it.
    """

    def __init__(self, model: nn.Module, cores: Cores) -> None:
        self._model = model  # whose memory the weights are
        self._cores = cores
        body, attention = model.model, model.layers[0].self_attn  # the same in all layers
        self._embedding = np.asarray(body.embed_tokens.weight)
        self._head = Linear(body.embed_tokens if model.args.tie_word_embeddings else model.lm_head)
        # Kept, because a step's logits are megabytes that the system would have to clear every time.
        self._logits = np.empty((0, self._head.width), dtype=np.float32)
        self._norm = _norm(body.norm)
        self._layers = [_layer(layer) for layer in model.layers]
        self._linears = [linear for layer in self._layers for linear in layer.linears]
        self._scale = np.float32(attention.scale)
        self.heads = int(attention.n_kv_heads)
        self.width = _head_width(model)
        self._rotations = Rotations(attention.rope, self.width)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    def run(self, tokens: Sequence[Sequence[int]] | np.ndarray, kv: BatchKV) -> np.ndarray:
        """The last hidden states, float32[B, hidden], of rows that go on with any number of ``tokens``, at least one;
        ``kv`` grows."""
        counts = np.array([len(row) for row in tokens])
        kv.reserve(counts)
        attention = Attention.of(kv, counts.tolist(), self._rotations)
        of_row = np.repeat(np.arange(len(counts)), counts)
        for linear in self._linears:
            linear.select(of_row)
        h: np.ndarray = self._embedding[np.concatenate(tokens)]
        space = Workspace.of(self._layers[0], len(h))
        with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
            for number, layer in enumerate(self._layers):
                self._attend(number, h, space, attention)
                self._mlp(layer, h, space)
        kv.lengths = kv.lengths + counts
        last: np.ndarray = h[np.cumsum(counts) - 1]
        return normed(last, self._norm)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """float32[B, V] of hidden states [B, hidden]; overwritten by the next call."""
        if len(hidden) > len(self._logits):
            self._logits = np.empty((len(hidden), self._head.width), dtype=np.float32)
        logits = self._logits[: len(hidden)]
        self._multiply(hidden, [(self._head, logits)])
        return logits

    def _attend(self, number: int, h: np.ndarray, space: Workspace, attention: Attention) -> None:
        layer = self._layers[number]
        x = normed(h, layer.before_attention, space.normed)
        self._multiply(x, [(layer.query, space.query), (layer.key, space.key), (layer.value, space.value)])
        query, key = self._normed(space.query, layer.query_norm), self._normed(space.key, layer.key_norm)
        projected = Projected(query, key, space.value, space.attended)
        work = partial(attention.attend, number, projected, self._scale)
        if attention.work > FEW:
            self._cores.run("attention", work)
        else:
            work(ALL)
        self._multiply(space.attended, [(layer.output, space.added)])
        h += space.added

    def _normed(self, x: np.ndarray, norm: RMSNorm | None) -> np.ndarray:
        """Each head of x [N, heads · width]."""
        if norm is None:
            return x
        return normed(x.reshape(len(x), -1, self.width), norm).reshape(x.shape)

    def _mlp(self, layer: Layer, h: np.ndarray, space: Workspace) -> None:
        x = normed(h, layer.before_mlp, space.normed)
        self._multiply(x, [(layer.gate, space.gate), (layer.up, space.up)], partial(_activate, space))
        self._multiply(space.gate, [(layer.down, space.added)])
        h += space.added

    def _multiply(
        self, x: np.ndarray, products: Sequence[tuple[Linear, np.ndarray]], then: Then | None = None
    ) -> None:
        """Each linear layer of x, by columns; ``then`` is called with those of a thread, where all are of one width."""
        rows = Rows.of(x)

        def work(share: Share) -> None:
            for linear, y in products:
                columns = share.of(linear.width, BLOCK)
                linear.part(rows, y, columns)
            if then is not None:
                then(columns)

        # Of many rows the last bits may depend on how the columns are shared.
        self._cores.run(tuple(linear.shape for linear, _ in products) if rows.few else None, work)


def accepts(model: nn.Module) -> bool:
    """Whether ``NumPyLlama`` computes what ``model`` does."""
    if type(model).__module__ not in ALIKE:
        return False
    parts = [module for _, module in model.named_modules() if list(_arrays(module))]
    rope = model.layers[0].self_attn.rope
    return (
        not any(getattr(layer, "use_sliding", False) for layer in model.layers)
        and all(type(part) in KNOWN for part in parts)
        and all(array.dtype == mx.float32 for part in parts for array in _arrays(part))
        and type(rope) in (nn.RoPE, Llama3RoPE)
        and not rope.traditional
        and rope.dims == _head_width(model)
    )


def _arrays(module: nn.Module) -> Iterator[mx.array]:
    return (value for value in module.values() if isinstance(value, mx.array))


def _head_width(model: nn.Module) -> int:
    attention = model.layers[0].self_attn
    width: int = Linear(attention.k_proj).width // int(attention.n_kv_heads)
    return width


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        _norm(layer.input_layernorm),
        Linear(attention.q_proj),
        Linear(attention.k_proj),
        Linear(attention.v_proj),
        _norm(attention.q_norm) if "q_norm" in attention else None,
        _norm(attention.k_norm) if "k_norm" in attention else None,
        Linear(attention.o_proj),
        _norm(layer.post_attention_layernorm),
        Linear(mlp.gate_proj),
        Linear(mlp.up_proj),
        Linear(mlp.down_proj),
    )


def _norm(norm: nn.RMSNorm) -> RMSNorm:
    return np.asarray(norm.weight), float(norm.eps)


def _activate(space: Workspace, columns: slice) -> None:
    """silu(gate) · up, into ``space.gate``."""
    step = max(1, ACTIVATED // max(1, columns.stop - columns.start))
    for start in range(0, len(space.gate), step):
        gate, up = (side[start : start + step, columns] for side in (space.gate, space.up))
        sigmoid = np.negative(gate)
        np.exp(sigmoid, out=sigmoid)  # infinite past e^88, where the sigmoid is 0
        sigmoid += 1
        gate /= sigmoid
        gate *= up
