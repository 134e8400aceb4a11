"""Keys and values kept for the prompts that come next: siblings of a group, later turns of a conversation, and
prompts that begin alike."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.cpu.kv_cache import SequenceKV
from selfplay_ray.inference.forward import LayerCaches

Tokens = tuple[int, ...]

WORTH_TRIMMING = 16
"""Tokens that a prompt must share with a kept one beyond which they differ; fewer are run as fast as copied."""
MOST_KEPT = 512
"""Sequences, because each that is looked for is compared with every one."""


@dataclass(slots=True)
class _Kept:
    tokens: np.ndarray
    caches: LayerCaches
    nbytes: int
    used: float


class PrefixCache:
    """The caches of token sequences run lately, at most MOST_KEPT and ``max_bytes`` of them, each for ``max_age``
    seconds since it was last of use; the least recently used go first.

    They belong to the adapter that ran them: ``drop`` them whenever its weights change.
    """

    def __init__(self, max_bytes: int, max_age: float = 600.0) -> None:
        self.max_bytes = max_bytes
        self.max_age = max_age
        self._kept: OrderedDict[tuple[Adapter, Tokens], _Kept] = OrderedDict()
        # What was asked for last and found, while no other is kept: siblings of a group ask for the same.
        self._found: tuple[tuple[Adapter, Tokens], tuple[tuple[Adapter, Tokens] | None, int]] | None = None
        self.nbytes = 0

    def longest(self, adapter: Adapter, tokens: Tokens) -> tuple[int, LayerCaches] | None:
        """The kept sequence that shares the longest beginning with ``tokens``: how long that is, and caches of it.

        Any number of rows may go on with them, for which they are copied.
        """
        if self._found is None or self._found[0] != (adapter, tokens):
            self._found = (adapter, tokens), self._search(adapter, tokens)
        best, shared = self._found[1]
        if best is None:
            return None
        kept = self._kept[best]
        kept.used = time.monotonic()
        self._kept.move_to_end(best)
        return shared, _trimmed(kept.caches, len(kept.tokens) - shared)

    def keep(self, adapter: Adapter, tokens: Tokens, caches: LayerCaches) -> None:
        """Remember ``caches``, which hold exactly ``tokens``; what they continue need not be remembered besides."""
        key = adapter, tokens
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if can_trim_prompt_cache(caches):
            for shorter in [
                old for old in self._kept if old[0] is adapter and tokens[: len(old[1])] == old[1]
            ]:
                self._forget(shorter)
        # Unevaluated, or views, they would hold on to the whole batch they were cut from.
        mx.eval([cache.state for cache in caches])
        caches = [cache.detached() if isinstance(cache, SequenceKV) else cache for cache in caches]
        nbytes = sum(int(cache.nbytes) for cache in caches)
        self._kept[key] = _Kept(np.array(tokens), caches, nbytes, time.monotonic())
        self._found = None
        self.nbytes += nbytes
        self.shrink(self.max_bytes)
        while len(self._kept) > MOST_KEPT:
            self._forget(next(iter(self._kept)))

    def shrink(self, max_bytes: int) -> None:
        """Let go of the least recently used until no more than ``max_bytes`` are kept."""
        while self._kept and self.nbytes > max_bytes:
            self._forget(next(iter(self._kept)))

    def expire(self) -> None:
        """Let go of what was of no use for too long."""
        now = time.monotonic()
        for key in [key for key, kept in self._kept.items() if now - kept.used > self.max_age]:
            self._forget(key)

    def drop(self, adapter: Adapter) -> None:
        """Let go of all that ``adapter`` ran."""
        for key in [key for key in self._kept if key[0] is adapter]:
            self._forget(key)

    def _search(self, adapter: Adapter, tokens: Tokens) -> tuple[tuple[Adapter, Tokens] | None, int]:
        """The key of the sequence that shares the longest beginning, and how long that is."""
        wanted = np.array(tokens)
        best, shared = None, 0
        for key, kept in self._kept.items():
            if key[0] is adapter:
                common = _common(wanted, kept.tokens)
                # Where a model's state can't be cut short, only the whole of it is of use.
                whole = common == len(kept.tokens)
                if common > shared and (
                    whole or (common >= WORTH_TRIMMING and can_trim_prompt_cache(kept.caches))
                ):
                    best, shared = key, common
        return best, shared

    def _forget(self, key: tuple[Adapter, Tokens]) -> None:
        self._found = None
        self.nbytes -= self._kept.pop(key).nbytes


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if differing.size else length


def _trimmed(caches: LayerCaches, surplus: int) -> LayerCaches:
    """``caches`` without the last ``surplus`` tokens; themselves stay as they are."""
    if surplus == 0:
        return caches
    shorter = [copy.copy(cache) for cache in caches]
    trim_prompt_cache(shorter, surplus)
    return shorter
