"""Keys and values of a tree of pages, as mlx-lm's attention layers expect them of a cache, but visible to autograd."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from selfplay_ray.training.micro_batch import Pass


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass of S pages sees: the positions of its rows, its mask, and where its keys come from.

    ``offset`` [S] is each row's first position, ``pages`` [S, K + 1] the rows that it attends to among all those
    run so far, itself the last. ``mask`` is [S, 1, width, (K + 1) · width], or "causal" where K is 0.
    """

    offset: mx.array | int
    mask: mx.array | str
    pages: mx.array | None

    @classmethod
    def of(cls, run: Pass, rows_before: int, additive: bool) -> PassContext:
        if not run.context.shape[1]:
            return cls(0, "causal", None)
        rows = mx.arange(rows_before, rows_before + run.inputs.shape[0])
        pages = mx.concatenate([mx.array(run.context), rows[:, None]], axis=1)
        return cls(mx.array(run.starts), _mask(run, additive), pages)


class PageCache:
    """The cache of one layer: it keeps what every pass adds, and hands each row the pages on its path.

    Keys arrive turned to their positions (RoPE), so that it doesn't matter in which order a row gets them.
    What it holds is an input of the layer that reads it. Whoever wraps such a layer in gradient checkpointing must
    hand it over as an argument, see ``recompute``: left in the object its gradient is dropped without a word.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None  # [rows run so far, kv_heads, width, head_dim]
        self.values: mx.array | None = None
        self.context: PassContext = PassContext(0, "causal", None)

    @property
    def offset(self) -> mx.array | int:
        return self.context.offset

    @property
    def state(self) -> tuple[mx.array, ...]:
        """Keys and values of all rows run so far; nothing before the first."""
        return () if self.keys is None or self.values is None else (self.keys, self.values)

    @state.setter
    def state(self, arrays: tuple[mx.array, ...]) -> None:
        self.keys, self.values = arrays or (None, None)

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        if window_size is not None:
            raise ValueError("pages are seen whole: a sliding window is not supported")
        return self.context.mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = _appended(self.keys, keys), _appended(self.values, values)
        pages = self.context.pages
        if pages is None:
            return keys, values
        return _gathered(self.keys, pages), _gathered(self.values, pages)


def _mask(run: Pass, additive: bool) -> mx.array:
    """What each token of a page may see: what is filled of the pages before, and of its own what came before.

    ``additive`` gives 0 and the lowest float32 instead of booleans, which is a fifth of attention faster on a CPU.
    """
    rows, width = run.inputs.shape
    places = mx.arange(width)
    before = places < mx.array(run.visible)[:, :, None]  # [S, K, width]
    before = mx.broadcast_to(before.reshape(rows, 1, 1, -1), (rows, 1, width, before.shape[1] * width))
    own = mx.broadcast_to(places[:, None] >= places, (rows, 1, width, width))
    mask = mx.concatenate([before, own], axis=-1)
    return mx.where(mask, 0.0, mx.finfo(mx.float32).min) if additive else mask


def _appended(before: mx.array | None, rows: mx.array) -> mx.array:
    return rows if before is None else mx.concatenate([before, rows])


def _gathered(rows: mx.array, pages: mx.array) -> mx.array:
    """[N, heads, width, dim] and [S, K + 1] to [S, heads, (K + 1) · width, dim], in one copy."""
    heads, width, dim = rows.shape[1:]
    flat = pages[:, None, :] * heads + mx.arange(heads)[:, None]  # [S, heads, K + 1]
    return rows.reshape(-1, width, dim)[flat].reshape(pages.shape[0], heads, -1, dim)
