"""Kept prefixes: the longest that fits, the least recently used out first, never more bytes than allowed."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.forward import LayerCaches
from selfplay_ray.inference.prefixes import MOST_KEPT, WORTH_TRIMMING, PrefixCache

MINE, OTHER = Adapter("mine"), Adapter("other")
BYTES_A_TOKEN = 2 * 4 * 4  # keys and values of one head of 4 float32


def caches(tokens: int) -> LayerCaches:
    cache = KVCache()
    cache.keys = cache.values = mx.broadcast_to(mx.arange(tokens)[None, None, :, None], (1, 1, tokens, 4))
    cache.offset = tokens
    return [cache]


def test_the_longest_that_begins_the_tokens_is_found() -> None:
    prefixes = PrefixCache(10**6)
    short, long = caches(2), caches(3)
    prefixes.keep(MINE, (1, 2), short)
    prefixes.keep(MINE, (1, 3, 4), long)
    assert prefixes.longest(MINE, (1, 3, 4, 4)) == (3, long)
    assert prefixes.longest(MINE, (1, 3, 4)) == (3, long)
    assert prefixes.longest(MINE, (1, 2, 9)) == (2, short)
    assert prefixes.longest(MINE, (1,)) is None
    assert prefixes.longest(MINE, (2, 3)) is None


def test_what_is_continued_is_kept_once() -> None:
    prefixes = PrefixCache(10**6)
    turns = tuple(range(20)), tuple(range(30)), tuple(range(45))
    for turn in turns:
        prefixes.keep(MINE, turn, caches(len(turn)))
    prefixes.keep(OTHER, turns[0], caches(20))
    assert prefixes.nbytes == (45 + 20) * BYTES_A_TOKEN
    assert (prefixes.longest(MINE, turns[0]) or (0,))[0] == 20


def test_the_least_recently_used_goes_first() -> None:
    prefixes = PrefixCache(5 * BYTES_A_TOKEN)
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.keep(MINE, (3, 4), caches(2))
    assert prefixes.longest(MINE, (1, 2)) is not None
    prefixes.keep(MINE, (5, 6), caches(2))
    assert prefixes.longest(MINE, (3, 4)) is None
    assert prefixes.longest(MINE, (1, 2)) is not None
    assert prefixes.nbytes == 4 * BYTES_A_TOKEN


def test_no_more_are_kept_than_are_quickly_searched() -> None:
    prefixes = PrefixCache(10**6)
    for number in range(MOST_KEPT + 2):
        prefixes.keep(MINE, (number, 0), caches(2))
    assert prefixes.nbytes == MOST_KEPT * 2 * BYTES_A_TOKEN
    assert prefixes.longest(MINE, (1, 0)) is None
    assert prefixes.longest(MINE, (2, 0)) is not None


def test_what_is_too_large_is_not_kept() -> None:
    prefixes = PrefixCache(BYTES_A_TOKEN)
    prefixes.keep(MINE, (1, 2), caches(2))
    assert prefixes.longest(MINE, (1, 2)) is None
    assert prefixes.nbytes == 0


def test_what_another_adapter_made_is_of_no_use() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(MINE, (1, 2), caches(2))
    assert prefixes.longest(OTHER, (1, 2)) is None
    prefixes.drop(OTHER)
    assert prefixes.longest(MINE, (1, 2)) is not None


def test_of_prompts_that_begin_alike_the_common_part_is_used() -> None:
    prefixes = PrefixCache(10**6)
    kept = tuple(range(40))
    prefixes.keep(MINE, kept, caches(40))
    shared, (cut,) = prefixes.longest(MINE, (*kept[:20], 99, 98)) or (0, [])
    assert shared == 20
    assert cut.keys[0, 0, : cut.size(), 0].tolist() == list(range(20))
    assert prefixes.longest(MINE, (*kept[: WORTH_TRIMMING - 1], 99)) is None
    assert (prefixes.longest(MINE, kept) or (0,))[0] == 40  # the kept one is whole as before


def test_what_was_of_no_use_for_too_long_goes() -> None:
    prefixes = PrefixCache(10**6, max_age=0.0)
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.expire()
    assert prefixes.nbytes == 0
    assert prefixes.longest(MINE, (1, 2)) is None
    prefixes.max_age = 3600.0
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.expire()
    assert prefixes.longest(MINE, (1, 2)) is not None


def test_it_shrinks_to_what_there_is_room_for() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.keep(MINE, (3, 4, 5), caches(3))
    prefixes.shrink(3 * BYTES_A_TOKEN)
    assert prefixes.longest(MINE, (1, 2)) is None
    assert prefixes.longest(MINE, (3, 4, 5)) is not None
    prefixes.shrink(-5)
    assert prefixes.nbytes == 0


def test_keeping_twice_counts_once() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.keep(MINE, (1, 2), caches(2))
    assert prefixes.nbytes == 2 * BYTES_A_TOKEN


def test_a_change_of_policy_leaves_nothing() -> None:
    prefixes = PrefixCache(10**6)
    prefixes.keep(MINE, (1, 2), caches(2))
    prefixes.drop(MINE)
    assert prefixes.longest(MINE, (1, 2)) is None
    assert prefixes.nbytes == 0


def test_what_a_sibling_was_told_is_no_longer_told_once_others_are_kept_or_gone() -> None:
    prefixes = PrefixCache(10**6)
    short, long = caches(2), caches(3)
    prefixes.keep(MINE, (1, 2), short)
    assert prefixes.longest(MINE, (1, 2, 3, 4)) == prefixes.longest(MINE, (1, 2, 3, 4)) == (2, short)
    assert prefixes.longest(OTHER, (1, 2, 3, 4)) is None
    assert prefixes.longest(MINE, (1, 2, 3, 4)) == (2, short)
    prefixes.keep(MINE, (1, 2, 3), long)
    assert prefixes.longest(MINE, (1, 2, 3, 4)) == (3, long)
    prefixes.drop(MINE)
    assert prefixes.longest(MINE, (1, 2, 3, 4)) is None
