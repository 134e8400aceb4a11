"""Kept prefixes: the longest that fits, the least recently used out first, never more bytes than allowed."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from selfplay_ray.inference.prefixes import PrefixCache
from selfplay_ray.inference.rows import LayerCaches

BYTES_A_TOKEN = 2 * 4 * 4  # keys and values of one head of 4 float32


def caches(tokens: int) -> LayerCaches:
    cache = KVCache()
    cache.keys = cache.values = mx.zeros((1, 1, tokens, 4))
    cache.offset = tokens
    return [cache]


def test_the_longest_that_begins_the_tokens_is_found() -> None:
    prefixes = PrefixCache(10**6)
    short, long = caches(2), caches(3)
    prefixes.keep((1, 2), short)
    prefixes.keep((1, 2, 3), long)
    assert prefixes.longest((1, 2, 3, 4)) == (3, long)
    assert prefixes.longest((1, 2, 3)) == (3, long)
    assert prefixes.longest((1, 2, 9)) == (2, short)
    assert prefixes.longest((1,)) is None
    assert prefixes.longest((2, 3)) is None


def test_the_least_recently_used_goes_first() -> None:
    prefixes = PrefixCache(5 * BYTES_A_TOKEN)
    prefixes.keep((1, 2), caches(2))
    prefixes.keep((3, 4), caches(2))
    assert prefixes.longest((1, 2)) is not None
    prefixes.keep((5, 6), caches(2))
    assert prefixes.longest((3, 4)) is None
    assert prefixes.longest((1, 2)) is not None
    assert prefixes.nbytes == 4 * BYTES_A_TOKEN


def test_what_is_too_large_is_not_kept() -> None:
    prefixes = PrefixCache(BYTES_A_TOKEN)
    prefixes.keep((1, 2), caches(2))
    assert prefixes.longest((1, 2)) is None
    assert prefixes.nbytes == 0


def test_keeping_twice_counts_once() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep((1, 2), caches(2))
    prefixes.keep((1, 2), caches(2))
    assert prefixes.nbytes == 2 * BYTES_A_TOKEN


def test_a_change_of_policy_leaves_nothing() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep((1, 2), caches(2))
    prefixes.clear()
    assert prefixes.longest((1, 2)) is None
    assert prefixes.nbytes == 0
