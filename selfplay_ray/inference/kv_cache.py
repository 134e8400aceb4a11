"""Keys and values of a batch, with room to grow and no more of it than will soon be used.

mlx-lm's own batch cache has no room left when rows are merged, and then grows by 256 positions, copying all of it.
For a group forked from one prompt that copy costs as much as a decode step or two, most of it spent on memory
that is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

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


def _joined(rows: Sequence[tuple[mx.array | None, int]], longest: int) -> mx.array:
    """Rows [1, heads, ≥ n, width] of n positions each as one array [B, heads, longest + ROOM, width]."""
    like = next(content for content, _ in rows if content is not None)
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
