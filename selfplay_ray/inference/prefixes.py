"""Keys and values kept for the prompts that come next: siblings of a group, later turns of a conversation."""

from __future__ import annotations

from collections import OrderedDict

import mlx.core as mx

from selfplay_ray.inference.rows import LayerCaches

Tokens = tuple[int, ...]


class PrefixCache:
    """The caches of token sequences run lately, least recently used out first, at most ``max_bytes`` of them.

    They belong to one policy: ``clear`` it whenever weights change.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Tokens, LayerCaches] = OrderedDict()
        self.nbytes = 0

    def longest(self, tokens: Tokens) -> tuple[int, LayerCaches] | None:
        """The kept sequence that covers most of the beginning of ``tokens``: its length and its caches.

        The caches may be handed to BatchGenerator any number of times, because it copies them.
        """
        matching = [kept for kept in self._entries if tokens[: len(kept)] == kept]
        if not matching:
            return None
        best = max(matching, key=len)
        self._entries.move_to_end(best)
        return len(best), self._entries[best]

    def keep(self, tokens: Tokens, caches: LayerCaches) -> None:
        """Remember ``caches``, which hold exactly ``tokens``."""
        if tokens in self._entries:
            self._entries.move_to_end(tokens)
            return
        # Unevaluated, they would hold on to the whole batch they were cut from.
        mx.eval([cache.state for cache in caches])
        self._entries[tokens] = caches
        self.nbytes += _nbytes(caches)
        while self.nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= _nbytes(oldest)

    def clear(self) -> None:
        self._entries.clear()
        self.nbytes = 0


def _nbytes(caches: LayerCaches) -> int:
    return sum(int(cache.nbytes) for cache in caches)
