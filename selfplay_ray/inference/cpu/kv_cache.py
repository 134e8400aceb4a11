"""Keys and values in NumPy: of one sequence, and of a batch that is written in place.

Rows of a batch begin at position 0 and end where they end, so nothing is padded on the left, and right padding is
undone by counting it off. Both speak the protocol of mlx-lm's caches, once for all layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np

from selfplay_ray.inference.kv_cache import ROOM


class SequenceKV:
    """Keys and values of one sequence, [layers, heads, n, width] each; never written to."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def new(cls, layers: int, heads: int, width: int) -> Self:
        """Of a sequence of which nothing was run yet."""
        nothing = np.zeros((layers, heads, 0, width), dtype=np.float32)
        return cls(nothing, nothing)

    @staticmethod
    def merge(sequences: Sequence[SequenceKV]) -> BatchKV:
        """A batch of copies, with room for the next tokens."""
        first, lengths = sequences[0], np.array([sequence.size() for sequence in sequences])
        batch = BatchKV.empty(len(sequences), lengths, first.keys.shape)
        if all(sequence is first for sequence in sequences):  # a fork
            batch.keys[:, :, :, : first.size()] = first.keys[:, None]
            batch.values[:, :, :, : first.size()] = first.values[:, None]
            return batch
        for row, sequence in enumerate(sequences):
            batch.keys[:, row, :, : sequence.size()] = sequence.keys
            batch.values[:, row, :, : sequence.size()] = sequence.values
        return batch

    def detach(self) -> None:
        """Hold on to no batch that this was cut from."""
        self.keys, self.values = self.keys.copy(), self.values.copy()

    def size(self) -> int:
        return int(self.keys.shape[2])

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Forget the last ``count`` positions; how many these were."""
        left = max(0, self.size() - count)
        count = self.size() - left
        self.keys, self.values = self.keys[:, :, :left], self.values[:, :, :left]
        return count

    @property
    def state(self) -> tuple[()]:
        """No MLX arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


class BatchKV:
    """Keys and values of a batch, [layers, B, heads, capacity, width] each, of which row b holds ``lengths[b]``."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths
        self._padding = np.zeros_like(lengths)

    @classmethod
    def empty(cls, rows: int, lengths: np.ndarray, shape: Sequence[int]) -> Self:
        """Room for ``rows`` like a sequence's ``shape``, as long as they say and some more."""
        layers, heads, _, width = shape
        longest = int(lengths.max())
        # Rows that hold nothing get room with their first tokens, when it is known how many these are.
        capacity = longest + ROOM if longest else 0
        # Zeros, because what a row doesn't attend to is multiplied with zero, and must be a number.
        full = (layers, rows, heads, capacity, width)
        return cls(np.zeros(full, dtype=np.float32), np.zeros(full, dtype=np.float32), lengths)

    def reserve(self, count: int) -> int:
        """Make room for ``count`` more positions; how many there are then to be looked at."""
        needed = int(self.lengths.max()) + count
        if needed > self.keys.shape[3]:
            self.keys, self.values = _resized(self.keys, needed + ROOM), _resized(self.values, needed + ROOM)
        return needed

    def take(self, rows: Sequence[int]) -> Self:
        """A batch of copies of ``rows``."""
        layers, _, *shape = self.keys.shape
        taken = type(self).empty(len(rows), self.lengths[list(rows)], [layers, *shape])
        for number, row in enumerate(rows):
            held = slice(0, int(self.lengths[row]))
            taken.keys[:, number, :, held] = self.keys[:, row, :, held]
            taken.values[:, number, :, held] = self.values[:, row, :, held]
        return taken

    def append_last(self, other: BatchKV, rows: Sequence[int]) -> None:
        """Let row b go on with the last position of ``other``'s row ``rows[b]``, which was as long."""
        self.reserve(1)
        last = self.lengths
        every, kinds = np.arange(len(last)), np.array(rows)
        # Indices on both sides of a slice: their axis comes first.
        self.keys[:, every, :, last] = other.keys[:, kinds, :, last]
        self.values[:, every, :, last] = other.values[:, kinds, :, last]
        self.lengths = last + 1

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows ``keep``; nothing is copied where these are all."""
        if list(keep) != list(range(len(self.lengths))):
            kept = self.take(keep)
            self.keys, self.values, self.lengths = kept.keys, kept.values, kept.lengths
            self._padding = self._padding[list(keep)]

    def extend(self, other: BatchKV) -> None:
        """Let the rows of ``other`` follow one's own."""
        longest = max(int(self.lengths.max()), int(other.lengths.max())) + ROOM
        self.keys = np.concatenate([_resized(self.keys, longest), _resized(other.keys, longest)], axis=1)
        self.values = np.concatenate(
            [_resized(self.values, longest), _resized(other.values, longest)], axis=1
        )
        self.lengths = np.concatenate([self.lengths, other.lengths])
        self._padding = np.concatenate([self._padding, other._padding])

    def extract(self, row: int) -> SequenceKV:
        """What row ``row`` holds, as long as it is not detached still in the batch's memory: rows only grow."""
        length = int(self.lengths[row])
        return SequenceKV(self.keys[:, row, :, :length], self.values[:, row, :, :length])

    def prepare(self, *, right_padding: Sequence[int], **_lengths: object) -> None:
        """Of what is run next the last ``right_padding[b]`` positions are none of row b's."""
        self._padding = np.array(right_padding)

    def finalize(self) -> None:
        """It was run: forget the padding."""
        self.lengths = self.lengths - self._padding
        self._padding = np.zeros_like(self.lengths)

    def __deepcopy__(self, memo: object) -> BatchKV:
        """The same memory: BatchGenerator splits a batch by copying it, and then no row stays in both."""
        return copy.copy(self)

    @property
    def state(self) -> tuple[()]:
        """No MLX arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


def _resized(array: np.ndarray, capacity: int) -> np.ndarray:
    """``array`` [layers, B, heads, n, width] with another n, zeros where there was nothing."""
    if array.shape[3] >= capacity:
        return array[:, :, :, :capacity]
    resized = np.zeros((*array.shape[:3], capacity, array.shape[4]), dtype=array.dtype)
    resized[:, :, :, : array.shape[3]] = array
    return resized
