"""A batch with room holds what mlx-lm's own batch holds."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from selfplay_ray.inference.kv_cache import ROOM, RoomyBatchKVCache, RoomyKVCache, with_room


def filled(cache: KVCache, length: int) -> KVCache:
    if length:
        values = mx.random.normal((1, 2, length, 4), key=mx.random.key(length))
        cache.update_and_fetch(values, values + 1)
    return cache


@pytest.mark.parametrize("lengths", [(5, 5, 5), (3, 7, 0), (0, 0), (300, 2)])
def test_merging_growing_and_extracting_are_as_in_mlx_lm(lengths: tuple[int, ...]):
    plain = BatchKVCache.merge([filled(KVCache(), length) for length in lengths])
    roomy = RoomyKVCache.merge([filled(RoomyKVCache(), length) for length in lengths])
    for step in range(ROOM + 3):  # beyond the room, so that it has to grow
        new = mx.full((len(lengths), 2, 1, 4), step)
        for ours, theirs in zip(
            roomy.update_and_fetch(new, new), plain.update_and_fetch(new, new), strict=True
        ):
            assert mx.array_equal(ours, theirs)
    assert (roomy.offset.tolist(), roomy.left_padding.tolist()) == (
        plain.offset.tolist(),
        plain.left_padding.tolist(),
    )
    for row in range(len(lengths)):
        ours, theirs = roomy.extract(row), plain.extract(row)
        assert isinstance(ours, RoomyKVCache)
        assert ours.offset == theirs.offset
        assert mx.array_equal(ours.keys, theirs.keys)


def test_a_merged_batch_takes_the_next_token_without_being_copied():
    batch = RoomyBatchKVCache.merge([filled(RoomyKVCache(), 5)] * 4)
    room = batch.keys.shape
    batch.update_and_fetch(mx.zeros((4, 2, 1, 4)), mx.zeros((4, 2, 1, 4)))
    assert batch.keys.shape == room == (4, 2, 5 + ROOM, 4)


def test_only_plain_caches_are_replaced():
    other = object()
    caches = with_room([KVCache(), other])
    assert type(caches[0]) is RoomyKVCache
    assert caches[1] is other
