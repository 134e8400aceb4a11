"""Attention in NumPy over keys and values that lie row by row: of one token a row, and of prompts.

softmax(Q Kᵀ / √d) V (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), n queries to a key head (Ainslie et al. 2023,
arXiv:2305.13245), turned to their positions. What one token a row computes is the same to the last bit, whoever is
beside it, with heads of a width that is a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.cpu.cores import Share
from selfplay_ray.inference.cpu.kv_cache import POSITIONS, Run
from selfplay_ray.inference.cpu.norm import RMSNorm, normed
from selfplay_ray.inference.cpu.products import SMALL

SCORES = 1 << 15
"""Scores that are worked on at a time: what stays in a core's cache, and is small enough that its memory is not asked
of the system each time."""

LOOKING = 64
"""Tokens of a prompt that attend at a time."""

SUMMED = 64
"""Positions whose values are added up in one product; these sums are then added in their order. So what rows have in
common can be computed for all at once (Juravsky et al. 2024, arXiv:2402.05099), and comes out as if it weren't."""

ROTATIONS = 1024
"""Positions whose sines and cosines are looked up at a time."""

KeysValues = tuple[np.ndarray, np.ndarray]
"""Of one layer, [B, heads, width, capacity] and [B, heads, capacity, width]."""


class Rotations:
    """What turns a head of ``width`` to its position, as ``rope`` does."""

    def __init__(self, rope: nn.Module, width: int) -> None:
        self._rope, self._width = rope, width
        half = np.zeros((0, 2, width // 2), dtype=np.float32)
        self._cosines, self._sines = half, half

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What both halves are multiplied with, and what each other's are, negative for the first half:
        [..., 2, width / 2]."""
        while positions.max() >= len(self._cosines):
            cosines, sines = self._more(len(self._cosines))
            self._cosines = np.concatenate([self._cosines, cosines])
            self._sines = np.concatenate([self._sines, sines])
        return self._cosines[positions], self._sines[positions]

    def _more(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the next positions: where ``rope`` turns (1, 0) to."""
        half = self._width // 2
        one = mx.concatenate([mx.ones((1, 1, ROTATIONS, half)), mx.zeros((1, 1, ROTATIONS, half))], axis=-1)
        cosine, sine = np.split(np.array(self._rope(one, offset=start))[0, 0], 2, axis=-1)
        return np.stack([cosine, cosine], axis=1), np.stack([-sine, sine], axis=1)


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of rows stand that go on with T each.

    ``length`` positions are looked at; ``at`` [B or 1, T] are the tokens' own; ``start`` is that of the first ones, if
    they are the same in all rows. ``cosines`` and ``sines`` are [B or 1, 1, 1, T, 2, width / 2], for either half of a
    head; ``bias`` [B or 1, 1, 1, T, length] is 0 where a token may look and minus infinity elsewhere, None where all
    may look everywhere.
    """

    length: int
    at: np.ndarray
    start: int | None
    cosines: np.ndarray
    sines: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def after(cls, lengths: np.ndarray, count: int, rotations: Rotations) -> Positions:
        """Of the next ``count`` tokens of rows that hold ``lengths`` [B]."""
        length = int(lengths.max()) + count
        alike = bool((lengths == lengths[0]).all())
        at = (lengths[:1] if alike else lengths)[:, None] + np.arange(count)
        bias = None
        if count > 1 or not alike:
            seen = np.arange(length) <= at[..., None]
            bias = np.where(seen, np.float32(0), np.float32(-np.inf))[:, None, None]
        cosines, sines = (side[:, None, None] for side in rotations.at(at))
        return cls(length, at, int(lengths[0]) if alike else None, cosines, sines, bias)

    def of(self, rows: slice) -> Positions:
        """Those of some rows."""
        if self.start is not None:
            return self
        bias = self.bias[rows] if self.bias is not None else None
        return Positions(self.length, self.at[rows], None, self.cosines[rows], self.sines[rows], bias)


@dataclass(frozen=True, slots=True)
class Projected:
    """Queries, keys and values of N tokens, [N, heads · width] each, in one layer; what they attend to goes into
    ``attended``, of the queries' shape."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attended: np.ndarray
    width: int
    scale: np.float32
    norms: tuple[RMSNorm, RMSNorm] | None

    def place(
        self, tokens: slice, heads: slice, positions: Positions, kv: KeysValues
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the keys and values of ``tokens`` to ``kv``, that of their B rows and some key ``heads``. Their queries,
        turned and scaled, [B, heads, queries a key head, T, width], and where of that shape goes what they attend
        to."""
        every = self.key.shape[1]
        query, key, value, attended = (
            side[tokens]
            .reshape(len(kv[0]), -1, every // self.width, side.shape[1] // every, self.width)
            .transpose(0, 2, 3, 1, 4)[:, heads]
            for side in (self.query, self.key, self.value, self.attended)
        )
        if self.norms is not None:
            query, key = normed(query, self.norms[0]), normed(key, self.norms[1])
        _write(kv[0].swapaxes(-1, -2), _rotated(key, positions)[:, :, 0], positions)
        _write(kv[1], value[:, :, 0], positions)
        turned = _rotated(query, positions)
        turned *= self.scale
        return turned, attended


class Attention(Protocol):
    """How the tokens of a forward pass attend, and how many ``scores`` that takes for each head."""

    @property
    def scores(self) -> int: ...

    def attend(self, projected: Projected, kv: KeysValues, share: Share) -> None:
        """Compute a share of it."""
        ...


@dataclass(frozen=True, slots=True)
class StepAttention:
    """Of one token a row; ``runs`` are the rows, by what is the same in their keys and values, and ``threads`` how many
    they are shared among."""

    positions: Positions
    runs: Sequence[Run]
    threads: int

    @property
    def scores(self) -> int:
        return self.runs[-1].stop * self.positions.length

    def attend(self, projected: Projected, kv: KeysValues, share: Share) -> None:
        """Of a share of the rows, or where these are too few of the key heads; as many rows at a time as fit a core's
        cache."""
        batch, heads = kv[0].shape[:2]
        by_heads = batch < self.threads
        rows = slice(0, batch) if by_heads else share.of(batch)
        some_heads = share.of(heads) if by_heads else slice(0, heads)
        if some_heads.start == some_heads.stop:
            return
        scores = projected.query.shape[1] // projected.width * self.positions.length
        for start, stop, shared in _pieces(self.runs, rows, max(1, SCORES // scores)):
            part = slice(start, stop)
            positions, cached = self.positions.of(part), (kv[0][part, some_heads], kv[1][part, some_heads])
            query, attended = projected.place(part, some_heads, positions, cached)
            attended[...] = _attended(query[:, :, :, 0], cached, positions, shared)[:, :, :, None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one row runs in a forward pass of several tokens: those that are ``tokens`` of all."""

    row: int
    tokens: slice
    positions: Positions

    @property
    def scores(self) -> int:
        """How many there are for each head."""
        return self.positions.at.size * self.positions.length

    def attend(self, projected: Projected, kv: KeysValues, heads: slice) -> None:
        """With ``heads``, some tokens at a time, which look at no more than is before the last of them."""
        row, positions = slice(self.row, self.row + 1), self.positions
        keys, values = kv[0][row, heads], kv[1][row, heads]
        query, attended = projected.place(self.tokens, heads, positions, (keys, values))
        count = query.shape[3]
        for start in range(0, count, LOOKING):
            some = slice(start, min(start + LOOKING, count))
            length = positions.length - count + some.stop
            # One product for all the queries of a key head and all tokens.
            queries = query[:, :, :, some].reshape(*query.shape[:2], -1, projected.width)
            scores = queries @ keys[..., :length]
            if positions.bias is not None:
                by_token = scores.reshape(*query.shape[:3], -1, length)
                by_token += positions.bias[:, :, :, some, :length]
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ values[..., :length, :]
            mixed /= scores.sum(axis=-1, keepdims=True)
            attended[:, :, :, some] = mixed.reshape(*query.shape[:3], -1, projected.width)


@dataclass(frozen=True, slots=True)
class PromptAttention:
    """Of rows that run several tokens each."""

    prompts: Sequence[Prompt]

    @property
    def scores(self) -> int:
        return sum(prompt.scores for prompt in self.prompts)

    def attend(self, projected: Projected, kv: KeysValues, share: Share) -> None:
        """Of a share of the prompts, and of those between two shares with some of the key heads."""
        heads, before = kv[0].shape[1], 0
        total = heads * self.scores
        for prompt in self.prompts:
            first, last = (
                min(max(round((bound * total - before) / prompt.scores), 0), heads)
                for bound in (share.start, share.stop)
            )
            before += heads * prompt.scores
            if first < last:
                prompt.attend(projected, kv, slice(first, last))


def _attended(query: np.ndarray, kv: KeysValues, positions: Positions, shared: int) -> np.ndarray:
    """What one token of each row attends to, [B, heads, n, width], by its n queries a key head, of that shape. The
    first ``shared`` positions of ``kv`` are the same in all rows."""
    count = query.shape[2]
    # For one query NumPy takes a routine that sums in another order.
    queries = query if count > 1 else np.repeat(query, 2, axis=2)
    scores = _scores(queries, kv[0], positions.length, shared)
    looked_at = scores[..., : positions.length]
    if positions.bias is not None:
        looked_at += positions.bias[:, :, :, 0]
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    mixed = _mixed(looked_at, kv[1][..., : positions.length, :], shared)
    mixed /= _sums(scores)
    return mixed[:, :, :count]


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
