"""Llama's forward pass in NumPy, for the models that are built like it.

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

from selfplay_ray.inference.cpu.cores import Cores, Share
from selfplay_ray.inference.cpu.kv_cache import POSITIONS, BatchKV, Run
from selfplay_ray.inference.cpu.products import BLOCK, SMALL, Linear

ALIKE = {"mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3"}
"""Where mlx-lm's ``Model`` is what this computes."""

KNOWN = (nn.Linear, nn.Embedding, nn.RMSNorm, nn.RoPE, Llama3RoPE)
"""What may hold arrays in such a model."""

SCORES = ACTIVATED = 1 << 15
"""Scores of attention, and values of the activation, that are worked on at a time: what stays in a core's cache, and
is small enough that its memory is not asked of the system each time."""

SUMMED = 64
"""Positions whose values are added up in one product; these sums are then added in their order. So what rows have in
common can be computed for all at once (Juravsky et al. 2024, arXiv:2402.05099), and comes out as if it weren't."""

Then = Callable[[slice], object]
RMSNorm = tuple[np.ndarray, float]
KeysValues = tuple[np.ndarray, np.ndarray]


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
class Positions:
    """Where the tokens of a forward pass stand.

    ``length`` positions are looked at; ``at`` [B or 1, T] are the tokens' own; ``start`` is that of the first ones, if
    they are the same in all rows. ``cosines`` and ``sines`` are [B or 1, 1, 1, T, 2, width / 2], for either half of a
    head; ``bias`` [B or 1, 1, 1, T, length] is 0 where a token may look and minus infinity elsewhere, None where all
    may look everywhere. ``runs`` are the rows, by what is the same in their keys and values.
    """

    length: int
    at: np.ndarray
    start: int | None
    cosines: np.ndarray
    sines: np.ndarray
    bias: np.ndarray | None
    runs: Sequence[Run]

    def of(self, rows: slice) -> Positions:
        """Those of some rows."""
        if self.start is not None:
            return self
        bias = self.bias[rows] if self.bias is not None else None
        return Positions(self.length, self.at[rows], None, self.cosines[rows], self.sines[rows], bias, ())


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
        self._rope = attention.rope
        self._scale = np.float32(attention.scale)
        self.heads = int(attention.n_kv_heads)
        self.width = _head_width(model)
        self._cosines, self._sines = _rotations(self._rope, self.width, 0)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    def hidden(self, tokens: np.ndarray, kv: BatchKV) -> np.ndarray:
        """The last hidden states, float32[B, hidden], of rows that go on with ``tokens`` [B, T]; ``kv`` grows."""
        batch, count = tokens.shape
        length = kv.reserve(count)
        order = np.argsort(kv.slots)  # everything is computed in the order in which keys and values lie
        for linear in self._linears:
            linear.select(order)
        # Of many tokens products are packed, and the same to the last bit only if all of a row is in one.
        alone = [Run(0, batch, 0)]
        runs = kv.runs(SUMMED) if count == 1 else alone
        positions = self._positions(kv.lengths[order], count, length, runs)
        h = self._embedding[tokens[order].reshape(-1)]
        space = Workspace.of(self._layers[0], len(h))
        with np.errstate(all="ignore"):  # which numbers overflow is for who looks at the result
            for number, layer in enumerate(self._layers):
                self._attention(
                    layer, h, space, positions, (kv.keys[:batch, number], kv.values[:batch, number])
                )
                self._mlp(layer, h, space)
            last = _normed(h.reshape(batch, count, -1)[:, -1], self._norm)
        kv.lengths = kv.lengths + count
        return last[kv.slots]

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """float32[B, V] of hidden states [B, hidden]; overwritten by the next call."""
        if len(hidden) > len(self._logits):
            self._logits = np.empty((len(hidden), self._head.width), dtype=np.float32)
        logits = self._logits[: len(hidden)]
        self._multiply(hidden, [(self._head, logits)])
        return logits

    def _positions(self, lengths: np.ndarray, count: int, length: int, runs: Sequence[Run]) -> Positions:
        while length > len(self._cosines):
            more = _rotations(self._rope, self.width, len(self._cosines))
            self._cosines = np.concatenate([self._cosines, more[0]])
            self._sines = np.concatenate([self._sines, more[1]])
        alike = bool((lengths == lengths[0]).all())
        at = (lengths[:1] if alike else lengths)[:, None] + np.arange(count)
        bias = None
        if count > 1 or not alike:
            seen = np.arange(length) <= at[..., None]
            bias = np.where(seen, np.float32(0), np.float32(-np.inf))[:, None, None]
        cosines, sines = self._cosines[at][:, None, None], self._sines[at][:, None, None]
        return Positions(length, at, int(lengths[0]) if alike else None, cosines, sines, bias, runs)

    def _attention(
        self, layer: Layer, h: np.ndarray, space: Workspace, positions: Positions, kv: KeysValues
    ) -> None:
        x = _normed(h, layer.before_attention, space.normed)
        self._multiply(x, [(layer.query, space.query), (layer.key, space.key), (layer.value, space.value)])
        self._cores.run("attention", lambda share: self._attend(layer, space, positions, kv, share))
        self._multiply(space.attended, [(layer.output, space.added)])
        h += space.added

    def _attend(
        self, layer: Layer, space: Workspace, positions: Positions, kv: KeysValues, share: Share
    ) -> None:
        """A share of ``space.attended``: rows, or where these are too few key heads; as many rows at a time as fit a
        core's cache."""
        batch, heads = kv[0].shape[:2]
        by_heads = batch < self._cores.count
        rows = slice(0, batch) if by_heads else share.of(batch)
        some_heads = share.of(heads) if by_heads else slice(0, heads)
        if some_heads.start == some_heads.stop:
            return
        scores = space.query.size // self.width // batch * positions.length
        step = max(1, SCORES // scores)
        for start, stop, shared in _pieces(positions.runs, rows, step):
            part = slice(start, stop), some_heads
            query, key, value, attended = (
                # [B, T, heads, queries a key head, width] as [B, heads, queries, T, width]
                side.reshape(batch, -1, heads, side.shape[1] // heads // self.width, self.width).transpose(
                    0, 2, 3, 1, 4
                )[part]
                for side in (space.query, space.key, space.value, space.attended)
            )
            cached = kv[0][part], kv[1][part]
            self._attend_part(layer, (query, key, value), positions.of(part[0]), cached, attended, shared)

    def _attend_part(
        self,
        layer: Layer,
        projected: tuple[np.ndarray, np.ndarray, np.ndarray],
        positions: Positions,
        kv: KeysValues,
        attended: np.ndarray,
        shared: int,
    ) -> None:
        """``attended`` [B, heads, n, T, width], of n queries a key head, from queries of that shape, keys and values of
        the same with n = 1, and ``kv``, to which these keys and values are added. Of that the first ``shared``
        positions are the same in all rows."""
        query, key, value = projected
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = _normed(query, layer.query_norm), _normed(key, layer.key_norm)
        _write(kv[0].swapaxes(-1, -2), _rotated(key, positions)[:, :, 0], positions)
        _write(kv[1], value[:, :, 0], positions)
        keys, values = kv[0][..., : positions.length], kv[1][..., : positions.length, :]
        turned = _rotated(query, positions)
        turned *= self._scale
        # One product for all the queries of a key head and all tokens.
        queries = turned.reshape(*query.shape[:2], -1, self.width)
        one_token = query.shape[3] == 1
        if one_token and queries.shape[2] == 1:
            # For one NumPy takes a routine that sums in another order.
            queries = np.repeat(queries, 2, axis=2)
        scores = _scores(queries, kv[0], positions.length, shared) if one_token else queries @ keys
        looked_at = scores[..., : positions.length]
        if positions.bias is not None:
            by_token = looked_at.reshape(*query.shape[:2], -1, query.shape[3], positions.length)
            by_token += positions.bias
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = _mixed(looked_at, values, shared) if one_token else scores @ values
        mixed /= _sums(scores) if one_token else scores.sum(axis=-1, keepdims=True)
        attended[...] = mixed[:, :, : query.shape[2] * query.shape[3]].reshape(attended.shape)

    def _mlp(self, layer: Layer, h: np.ndarray, space: Workspace) -> None:
        x = _normed(h, layer.before_mlp, space.normed)
        self._multiply(x, [(layer.gate, space.gate), (layer.up, space.up)], partial(_activate, space))
        self._multiply(space.gate, [(layer.down, space.added)])
        h += space.added

    def _multiply(
        self, x: np.ndarray, products: Sequence[tuple[Linear, np.ndarray]], then: Then | None = None
    ) -> None:
        """Each linear layer of x, by columns; ``then`` is called with those of a thread, where all are of one width."""

        def work(share: Share) -> None:
            for linear, y in products:
                columns = share.of(linear.width, BLOCK)
                linear.part(x, y, columns)
            if then is not None:
                then(columns)

        # Packed, the last bits of a product may depend on how its columns are shared.
        small = all(linear.is_small(len(x)) for linear, _ in products)
        self._cores.run(tuple(linear.shape for linear, _ in products) if small else None, work)


def _pieces(runs: Sequence[Run], rows: slice, step: int) -> Iterator[Run]:
    """Those ``rows`` that are in ``runs``, at most ``step`` at a time."""
    for run in runs:
        stop = min(run.stop, rows.stop)
        for start in range(max(run.start, rows.start), stop, step):
            yield Run(start, min(start + step, stop), run.shared)


def _scores(queries: np.ndarray, keys: np.ndarray, length: int, shared: int) -> np.ndarray:
    """queries [B, heads, n, width] · the first ``length`` keys [B, heads, width, N]: [B, heads, n, length], and minus
    infinity up to a multiple of POSITIONS; the first ``shared`` keys are the same in all rows. Whole blocks are
    computed, because OpenBLAS rounds otherwise in others."""
    keys = keys[..., : -(-length // POSITIONS) * POSITIONS]
    scores = np.empty((*queries.shape[:3], keys.shape[-1]), dtype=np.float32)
    if shared:
        common = np.empty((queries.shape[1], len(queries) * queries.shape[2], shared), dtype=np.float32)
        _multiply_unpacked(_together(queries), keys[0, ..., :shared], common)
        scores[..., :shared] = _apart(common, len(queries))
    _multiply_unpacked(queries, keys[..., shared:], scores[..., shared:])
    scores[..., length:] = -np.inf
    return scores


def _mixed(weights: np.ndarray, values: np.ndarray, shared: int) -> np.ndarray:
    """weights [B, heads, n, N] · values [B, heads, N, width]: [B, heads, n, width], added up in the same order whether
    the first ``shared`` values, a multiple of SUMMED, are taken from the first row for all or not."""
    mixed = None
    if shared:
        mixed = _apart(_summed(_together(weights[..., :shared]), values[0, :, :shared]), len(weights))
    return _summed(weights[..., shared:], values[..., shared:, :], mixed)


def _summed(weights: np.ndarray, values: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
    """``total`` + weights [..., n, N] · values [..., N, width]."""
    count = values.shape[-2] // SUMMED
    whole = count * SUMMED
    if count:
        blocks = weights[..., :whole].reshape(*weights.shape[:-1], count, SUMMED).swapaxes(-2, -3)
        parts = blocks @ values[..., :whole, :].reshape(*values.shape[:-2], count, SUMMED, -1)
        if total is not None:
            parts[..., 0, :, :] += total
        total = np.add.reduce(parts, axis=-3)  # one after the other
    if whole < values.shape[-2]:
        rest = weights[..., whole:] @ values[..., whole:, :]
        total = rest if total is None else np.add(total, rest, out=rest)
    assert total is not None  # there is always the token's own position
    return total


def _sums(weights: np.ndarray) -> np.ndarray:
    """The sums [..., 1] of weights [..., N], N a multiple of POSITIONS: the same to the last bit, however many zeros
    follow a row's own because others are longer."""
    blocks = weights.reshape(*weights.shape[:-1], -1, POSITIONS)
    sums: np.ndarray = np.einsum("...ks->...s", blocks).sum(axis=-1, keepdims=True)
    return sums


def _multiply_unpacked(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """x [..., n, m] · y [..., m, N], N a multiple of POSITIONS, in products so small that each sum is the same,
    whatever is beside it."""
    step = max(1, SMALL // (x.shape[-2] * x.shape[-1] * POSITIONS)) * POSITIONS
    for start in range(0, y.shape[-1], step):
        columns = slice(start, start + step)
        np.matmul(x, y[..., columns], out=out[..., columns])


def _together(x: np.ndarray) -> np.ndarray:
    """[B, heads, n, m] as [heads, B · n, m]."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[-1])


def _apart(x: np.ndarray, rows: int) -> np.ndarray:
    """[heads, B · n, m] as [B, heads, n, m]."""
    return x.reshape(len(x), rows, -1, x.shape[-1]).swapaxes(0, 1)


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


def _normed(x: np.ndarray, norm: RMSNorm, out: np.ndarray | None = None) -> np.ndarray:
    """x / √(mean x² + ε) · weight over the last axis."""
    weight, epsilon = norm
    mean = np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1])
    normed: np.ndarray = np.multiply(x, (1 / np.sqrt(mean + np.float32(epsilon)))[..., None], out=out)
    normed *= weight
    return normed


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


ROTATIONS = 1024
"""Positions whose sines and cosines are looked up at a time."""


def _rotations(rope: nn.Module, width: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """What both halves are multiplied with, and what each other's are, [ROTATIONS, 2, width / 2] from position
    ``start``: cosines, and sines, negative for the first half. They are where ``rope`` turns (1, 0) to."""
    half = width // 2
    one = mx.concatenate([mx.ones((1, 1, ROTATIONS, half)), mx.zeros((1, 1, ROTATIONS, half))], axis=-1)
    cosine, sine = np.split(np.array(rope(one, offset=start))[0, 0], 2, axis=-1)
    return np.stack([cosine, cosine], axis=1), np.stack([-sine, sine], axis=1)


def _rotated(x: np.ndarray, positions: Positions) -> np.ndarray:
    """x [B, heads, n, T, width] turned to its positions (Su et al. 2021, arXiv:2104.09864, eq. 34)."""
    halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    turned: np.ndarray = halves * positions.cosines
    turned += halves[..., ::-1, :] * positions.sines
    return turned.reshape(x.shape)


def _write(side: np.ndarray, new: np.ndarray, positions: Positions) -> None:
    """Put ``new`` [B, heads, T, width] where it belongs in ``side`` [B, heads, capacity, width]."""
    if positions.start is not None:
        side[:, :, positions.start : positions.start + new.shape[2]] = new
    else:
        # Indices on both sides of a slice: their axes come first.
        side[np.arange(len(new))[:, None], :, positions.at] = new.swapaxes(1, 2)
