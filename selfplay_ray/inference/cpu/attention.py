"""Attention over keys and values that lie row by row, of any number of tokens a row.

softmax(Q Kᵀ / √d) V (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), n queries to a key head (Ainslie et al. 2023,
arXiv:2305.13245), turned to their positions. Every number is summed up in an order that depends on nothing but the
token's position: the same to the last bit, whoever is beside it, and whether a token comes alone or with others of its
row. So what rows have in common may be read from one of them, where it stays in the core's cache for the others
(Juravsky et al. 2024, arXiv:2402.05099).
"""

from __future__ import annotations

from typing import NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.cpu.kv_cache import BatchKV

ROTATIONS = 1024
"""Positions whose sines and cosines are looked up at a time."""

TOGETHER = 64
"""Tokens of a row that a thread isn't interrupted in."""


class Rotations:
    """What turns a head of ``width`` to its position, as ``rope`` does."""

    def __init__(self, rope: nn.Module, width: int) -> None:
        self._rope, self._half = rope, width // 2
        self.cosines = self.sines = np.zeros((0, self._half), dtype=np.float32)

    def reach(self, positions: int) -> None:
        """Let ``cosines`` and ``sines`` be those of so many positions at least: [positions, width / 2]."""
        while positions > len(self.cosines):
            cosines, sines = self._more(len(self.cosines))
            self.cosines = np.concatenate([self.cosines, cosines])
            self.sines = np.concatenate([self.sines, sines])

    def _more(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the next positions: where ``rope`` turns (1, 0) to."""
        ones = mx.ones((1, 1, ROTATIONS, self._half))
        turned = np.array(self._rope(mx.concatenate([ones, mx.zeros_like(ones)], axis=-1), offset=start))
        cosines, sines = np.split(turned[0, 0], 2, axis=-1)
        return cosines, sines


class Attention(NamedTuple):
    """Which token attends to what, in every layer.

    ``rows`` [B, 6] are, of each row of the batch, its slot, the positions it holds, its first token and how many it
    has, the slot its beginning is read from and how many positions that is. ``pieces`` [P, 4] are what threads share:
    a row, a key head, and from which token of the row to which.
    """

    rows: np.ndarray
    pieces: np.ndarray

    @classmethod
    def of(cls, kv: BatchKV, counts: np.ndarray, firsts: np.ndarray) -> Self:
        """Of rows that go on with ``counts`` tokens each, which lie beside each other from each row's first."""
        sources, common = kv.beginnings()
        rows = np.stack([kv.slots, kv.lengths, firsts, counts, sources, common], axis=1)
        # Who reads the same follow each other.
        pieces = [
            (row, head, start, min(start + TOGETHER, counts[row]))
            for group in kv.groups()
            for head in range(kv.heads)
            for row in group
            for start in range(0, counts[row], TOGETHER)
        ]
        return cls(rows, np.array(pieces))
