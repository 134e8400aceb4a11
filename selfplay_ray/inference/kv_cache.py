"""Keys and values of a batch, with room to grow and no more of it than will soon be used.

mlx-lm's own batch cache has no room left when rows are merged, and then grows by 256 positions, copying all of it.
For a group forked from one prompt that copy costs as much as a decode step or two, most of it spent on memory
that is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeGuard

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

ROOM = 64
"""Positions allocated at a time."""


class RoomyBatchKVCache(BatchKVCache):
    """A ``BatchKVCache`` that is merged with room for the next tokens."""

    step = ROOM

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> Self:
        """One batch of the rows ``caches``, left-padded to the longest, as mlx-lm pads them."""
        longest = max(cache.size() for cache in caches)
        batch = cls([longest - cache.size() for cache in caches])
        if longest:
            batch.keys = _joined([(cache.keys, cache.size()) for cache in caches], longest)  # type: ignore[assignment]
            batch.values = _joined([(cache.values, cache.size()) for cache in caches], longest)  # type: ignore[assignment]
            batch.offset += longest
            batch._idx = longest  # where the next token goes; mlx-lm's own merge sets it as well
        return batch

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keep the rows ``batch_indices``; nothing is copied where these are all."""
        if list(batch_indices) != list(range(self.offset.shape[0])):
            super().filter(batch_indices)  # type: ignore[no-untyped-call]

    def extract(self, idx: int) -> RoomyKVCache:
        """Row ``idx`` by itself."""
        plain = super().extract(idx)  # type: ignore[no-untyped-call]
        row = RoomyKVCache()  # type: ignore[no-untyped-call]
        row.keys, row.values, row.offset = plain.keys, plain.values, plain.offset
        return row


class RoomyKVCache(KVCache):
    """A ``KVCache`` whose batches have room."""

    @classmethod
    def merge(cls, caches: Sequence[KVCache]) -> RoomyBatchKVCache:
        return RoomyBatchKVCache.merge(caches)


class AlikeRows:
    """A batch's cache for a forward pass of which only one row of each kind is run: what it computes is kept for
    all of its kind.

    Args:
        cache: of all B rows.
        first: one row of each kind, int32[U].
        kind: the kind of each row, an index into ``first``, int32[B].
    """

    def __init__(self, cache: RoomyBatchKVCache, first: mx.array, kind: mx.array) -> None:
        self._cache = cache
        self._first = first
        self._kind = kind

    @property
    def offset(self) -> mx.array:
        """int32[U], where the next token of each row run goes."""
        return self._cache.offset[self._first]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep [U, heads, 1, width] for all rows; the keys and values of the rows run, [U, heads, n, width]."""
        keys, values = self._cache.update_and_fetch(keys[self._kind], values[self._kind])  # type: ignore[no-untyped-call]
        return keys[self._first], values[self._first]

    def make_mask(self, n: int, **options: Any) -> mx.array | str | None:
        mask: mx.array | str | None = self._cache.make_mask(n, **options)
        return mask[self._first] if isinstance(mask, mx.array) else mask


def _joined(rows: Sequence[tuple[mx.array | None, int]], longest: int) -> mx.array:
    """Rows [1, heads, ≥ n, width] of n positions each as one array [B, heads, longest + ROOM, width]."""
    like, size = next((content, size) for content, size in rows if content is not None)
    if all(
        content is like and n == size for content, n in rows
    ):  # a fork: written once, from the one there is
        forked = mx.broadcast_to(like[..., :size, :], (len(rows), like.shape[1], size, like.shape[3]))
        room = mx.zeros((len(rows), like.shape[1], ROOM, like.shape[3]), like.dtype)
        return mx.concatenate([forked, room], axis=2)
    joined = mx.zeros((len(rows), like.shape[1], longest + ROOM, like.shape[3]), like.dtype)
    for row, (content, size) in enumerate(rows):
        if content is not None:
            joined[row : row + 1, :, longest - size : longest] = content[..., :size, :]
    return joined


def with_room(caches: Sequence[object]) -> list[object]:
    """``caches`` as mlx-lm makes them for one sequence, with plain ones replaced by such as have room."""
    return [
        RoomyKVCache() if type(cache) is KVCache else cache  # type: ignore[no-untyped-call]
        for cache in caches
    ]


def are_roomy(caches: Sequence[object]) -> TypeGuard[Sequence[RoomyBatchKVCache]]:
    """Whether all ``caches`` of a batch are of the plain kind."""
    return all(isinstance(cache, RoomyBatchKVCache) for cache in caches)
