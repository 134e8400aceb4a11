"""Llama's forward pass on a CPU, for the models that are built like it.

Per layer (Touvron et al. 2023, arXiv:2302.13971): h += O attention(rope(Q n(h)), rope(K n(h)), V n(h)), and
h += down(silu(gate n(h)) · up n(h)), n being an RMS norm. It uses the weights of mlx-lm's model where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.rope_utils import Llama3RoPE

from selfplay_ray.inference.cpu.attend import Heads, Seeing
from selfplay_ray.inference.cpu.attention import Attention, Rotations
from selfplay_ray.inference.cpu.cores import Cores
from selfplay_ray.inference.cpu.kv_cache import BatchKV
from selfplay_ray.inference.cpu.layers import Crew, Space, Weights, run_head, run_layers
from selfplay_ray.inference.cpu.linears import Linears
from selfplay_ray.inference.cpu.panels import in_panels
from selfplay_ray.inference.cpu.projections import OUT, Reduced, Scratch

ALIKE = {"mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3"}
"""Where mlx-lm's ``Model`` is what this computes."""

KNOWN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.RoPE, Llama3RoPE)
"""What may hold arrays in such a model."""


class CompiledLlama:
    """mlx-lm's ``model``, run by ``cores``; ``accepts`` tells which models can be.

    The adapters its layers select are computed with it. A row's numbers are the same to the last bit, whatever other
    rows there are, whatever part of it is run at a time, and by however many threads.
    """

    def __init__(self, model: nn.Module, cores: Cores) -> None:
        self._model = model  # whose memory the weights are
        self._cores = cores
        body, attention = model.model, model.layers[0].self_attn  # the same in all layers
        self._embedding = np.asarray(body.embed_tokens.weight)
        self._norm = np.asarray(body.norm.weight), np.float32(body.norm.eps)
        self._linears = Linears([linear for layer in model.layers for linear in _linears(layer)])
        self._head = Linears([body.embed_tokens if model.args.tie_word_embeddings else model.lm_head])
        self.depth = len(model.layers)
        self.heads = int(attention.n_kv_heads)
        self.width = _head_width(model)
        self._weights = _weights(model, self._linears, self.width)
        self._rotations = Rotations(attention.rope, self.width)
        # Kept, because a step's logits are megabytes that the system would have to clear every time.
        self._logits = np.zeros((0, 0), np.float32)
        self._in_panels = np.zeros((0, 0, 0), np.float32)

    def run(self, tokens: Sequence[Sequence[int]] | np.ndarray, kv: BatchKV) -> np.ndarray:
        """The last hidden states, float32[B, hidden], of rows that go on with any number of ``tokens``, at least one;
        ``kv`` grows.

        Raises:
            ValueError: adapters are selected for another number of rows.
        """
        counts = np.array([len(row) for row in tokens])
        rank = self._linears.select()
        own = self._linears.own(rank)
        order = np.arange(len(counts))
        if own is not None:
            if len(own) != len(counts):
                raise ValueError(f"adapters are selected for {len(own)} rows, and {len(counts)} are run")
            order = _by_adapter(own)
            own = np.repeat(own[order], counts[order], axis=0)
        kv.reserve(counts)
        ends = np.empty_like(counts)
        ends[order] = np.cumsum(counts[order])
        attention = Attention.of(kv, counts, ends - counts)
        self._rotations.reach(int((kv.lengths + counts).max()))
        heads = Heads(kv.keys, kv.values, self._rotations.cosines, self._rotations.sines)
        space = self._space(
            self._embedding[np.concatenate([tokens[row] for row in order.tolist()])], rank, own
        )
        crew = Crew.of(self._cores.count, self.depth)
        own_room = [(Scratch.new(), Seeing.new(self.width, kv.keys.shape[3])) for _ in range(crew.threads)]

        def work(thread: int) -> None:
            run_layers(self._weights, space, heads, *attention, crew, *own_room[thread])

        self._cores.together(work, crew.give_up)
        kv.lengths = kv.lengths + counts
        lasts, lanes = ends - 1, space.h.shape[2]
        return self._normed(space.h[lasts // lanes, :, lasts % lanes])

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """float32[B, V] of hidden states [B, hidden]; overwritten by the next call."""
        x, count, width = in_panels(hidden), len(hidden), int(self._head.table[0, OUT])
        panels, _, lanes = x.shape
        if count > len(self._logits) or self._in_panels.shape != (panels, width, lanes):
            self._logits = np.zeros((count, width), np.float32)
            self._in_panels = np.zeros((panels, width, lanes), np.float32)
        logits, crew = self._logits[:count], Crew.of(self._cores.count, 1)
        nothing = Reduced.new(panels, lanes, 0, None)

        def work(_thread: int) -> None:
            run_head(self._head.table[0], x, nothing, self._in_panels, logits, crew, Scratch.new())

        self._cores.together(work, crew.give_up)
        return logits

    def _space(self, embedded: np.ndarray, rank: int, own: np.ndarray | None) -> Space:
        """Where tokens [N, hidden] are worked on."""
        h = in_panels(embedded)
        panels, _, lanes = h.shape
        reduced = Reduced.new(panels, lanes, rank, None if own is None else in_panels(own))

        def room(width: int) -> np.ndarray:
            return np.zeros((panels, width, lanes), np.float32)

        def beside() -> Reduced:
            return reduced._replace(z=np.zeros_like(reduced.z))

        query, key, value, _, gate, up, _ = (int(width) for width in self._linears.table[:7, OUT])
        return Space(
            h=h,
            normed=np.empty_like(h),
            query=room(query),
            key=room(key),
            value=room(value),
            attended=room(query),
            gate=room(gate),
            up=room(up),
            reduced=(reduced, beside(), beside()),
        )

    def _normed(self, x: np.ndarray) -> np.ndarray:
        weight, epsilon = self._norm
        with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
            x = np.ascontiguousarray(x)  # or how a row is summed up would depend on how many there are
            mean = (x * x).sum(axis=1) / np.float32(x.shape[1])
            normed: np.ndarray = x * (1 / np.sqrt(mean + epsilon))[:, None] * weight
        return normed


def _by_adapter(own: np.ndarray) -> np.ndarray:
    """Rows in the order of the last rank that ``own`` [B, rank] gives them, those without any first: of one adapter
    they follow each other, and so share panels."""
    last = (own * np.arange(1, own.shape[1] + 1)).max(axis=1)
    return np.argsort(last, kind="stable")


def accepts(model: nn.Module) -> bool:
    """Whether ``CompiledLlama`` computes what ``model`` does."""
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
    return int(Linears([attention.k_proj]).table[0, OUT]) // int(attention.n_kv_heads)


def _linears(layer: Any) -> list[nn.Module]:
    """In the order ``layers`` has them in."""
    attention, mlp = layer.self_attn, layer.mlp
    attends = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*attends, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _weights(model: nn.Module, linears: Linears, width: int) -> Weights:
    layers, attention = model.layers, model.layers[0].self_attn
    norms = [[layer.input_layernorm, layer.post_attention_layernorm] for layer in layers]
    heads = [
        [part.q_norm, part.k_norm] if "q_norm" in part else [] for part in (la.self_attn for la in layers)
    ]
    epsilons = [norm.eps for norm in (norms[0][0], *(heads[0] or norms[0]))]
    return Weights(
        linears.table.reshape(len(layers), 7, -1),
        linears.scales.reshape(len(layers), 7),
        np.array([[np.asarray(norm.weight) for norm in pair] for pair in norms]),
        np.array([[np.asarray(norm.weight) for norm in pair] for pair in heads], np.float32).reshape(
            len(layers), 2, width if heads[0] else 0
        ),
        np.array(epsilons, np.float32),
        np.float32(attention.scale),
    )
