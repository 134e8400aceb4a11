"""Keys and values in NumPy: of one sequence, and of a batch that is written in place.

Rows of a batch begin at position 0 and end where they end, so nothing is padded on the left, and right padding is
undone by counting it off. Both speak the protocol of mlx-lm's caches, once for all layers.

Memory the system hands out costs more than what is written to it, and a batch takes hundreds of megabytes. So rows
come and go in memory that stays: who leaves, leaves a slot for the next.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Self
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from selfplay_ray.inference.kv_cache import ROOM

WASTE = 2
"""Memory of which no more than one part in so many is of use is given back."""

UNBOUNDED = sys.maxsize
"""Where nothing is known of how long a sequence may become."""


class SequenceKV:
    """Keys and values of one sequence, [layers, heads, n, width] each; never written to.

    ``longest`` is how many positions it may come to hold. What was cut from a batch lies in a slot of the batch's
    memory until it is detached; the batch does that itself before it gives the slot to others, of which it knows by
    ``cut``.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, longest: int = UNBOUNDED) -> None:
        self.keys, self.values, self.longest = keys, values, longest
        self._cut: Cut | None = None

    @classmethod
    def new(cls, layers: int, heads: int, width: int) -> Self:
        """Of a sequence of which nothing was run yet."""
        nothing = np.zeros((layers, heads, 0, width), dtype=np.float32)
        return cls(nothing, nothing)

    @classmethod
    def cut(cls, keys: np.ndarray, values: np.ndarray, longest: int, slot: int, cut: Cut) -> Self:
        """What lies in ``slot`` of a batch."""
        sequence = cls(keys, values, longest)
        sequence._cut = cut
        cut[sequence] = slot
        return sequence

    @staticmethod
    def merge(sequences: Sequence[SequenceKV]) -> BatchKV:
        """A batch of copies."""
        layers, heads, _, width = sequences[0].keys.shape
        batch = BatchKV.empty(layers, heads, width)
        batch.append(sequences)
        return batch

    def __copy__(self) -> SequenceKV:
        if self._cut is None:
            return SequenceKV(self.keys, self.values, self.longest)
        return SequenceKV.cut(self.keys, self.values, self.longest, self._cut[self], self._cut)

    def growing_to(self, longest: int) -> SequenceKV:
        """The same, of which is known how many positions it may come to hold."""
        grown = copy.copy(self)
        grown.longest = longest
        return grown

    def detach(self) -> None:
        """Hold on to no batch that this was cut from."""
        self.keys, self.values = self.keys.copy(), self.values.copy()
        if self._cut is not None:
            del self._cut[self]
            self._cut = None

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


Cut = WeakKeyDictionary[SequenceKV, int]
"""Sequences that lie in a batch's memory, and in which slot."""


class BatchKV:
    """Keys and values of B rows, of which row b holds ``lengths[b]`` positions in slot ``slots[b]`` of ``keys`` and
    ``values``, [slots, layers, heads, capacity, width] each.

    When a batch is run its rows fill the first B slots, in any order. Rows stay where they are as others leave, but
    the last, which fill the gaps.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._hold(keys, values)
        self.lengths, self.slots, self._longest, self._padding = (
            np.zeros(0, dtype=np.int64) for _ in range(4)
        )

    def _hold(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Live in this memory, of zeros, from now on."""
        self.keys, self.values = keys, values
        # How far each slot was ever written, beyond which there are zeros: what a row doesn't attend to is multiplied
        # with zero, and must be a number.
        self._written = np.zeros(len(keys), dtype=np.int64)
        self._cut: Cut = WeakKeyDictionary()
        self._owners = WeakSet([self])

    @classmethod
    def empty(cls, layers: int, heads: int, width: int) -> Self:
        """Of no rows, and without memory."""
        nothing = np.zeros((0, layers, heads, 0, width), dtype=np.float32)
        return cls(nothing, nothing)

    def reserve(self, count: int) -> int:
        """Let the rows be in the first slots and have room for ``count`` more positions, which will be written; how
        many positions there are then to be looked at."""
        needed = int(self.lengths.max()) + count
        self._settle(len(self.lengths), needed)
        self._written[self.slots] = np.maximum(self._written[self.slots], self.lengths + count)
        return needed

    def append(self, sequences: Sequence[SequenceKV]) -> None:
        """Add rows that go on with copies of ``sequences``."""
        rows, lengths = len(self.lengths), [sequence.size() for sequence in sequences]
        longest = [sequence.longest for sequence in sequences]
        self._settle(rows + len(sequences), max([*lengths, *self.lengths]), max(longest))
        for slot, sequence in enumerate(sequences, start=rows):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.concatenate([self.slots, np.arange(rows, rows + len(sequences))])
        self.lengths = np.concatenate([self.lengths, lengths])
        self._longest = np.concatenate([self._longest, longest])
        self._padding = np.concatenate([self._padding, np.zeros_like(lengths)])

    def append_last(self, other: BatchKV, rows: Sequence[int]) -> None:
        """Let row b go on with the last position of ``other``'s row ``rows[b]``, which was as long."""
        self.reserve(1)
        last, theirs = self.lengths, other.slots[list(rows)]
        # Indices on both sides of a slice: their axis comes first.
        self.keys[self.slots, :, :, last] = other.keys[theirs, :, :, last]
        self.values[self.slots, :, :, last] = other.values[theirs, :, :, last]
        self.lengths = last + 1

    def take(self, rows: Sequence[int]) -> BatchKV:
        """A batch of copies of ``rows``."""
        return SequenceKV.merge([self.extract(row) for row in rows])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows ``keep``; the others' slots are free when the batch is run or extended next."""
        kept = list(keep)
        self.lengths, self.slots = self.lengths[kept], self.slots[kept]
        self._longest, self._padding = self._longest[kept], self._padding[kept]

    def extend(self, other: BatchKV) -> None:
        """Let the rows of ``other`` follow one's own."""
        self.append([other.extract(row) for row in range(len(other.lengths))])
        self._padding[-len(other.lengths) :] = other._padding

    def extract(self, row: int) -> SequenceKV:
        """What row ``row`` holds, still in the batch's memory."""
        slot, held = int(self.slots[row]), slice(0, int(self.lengths[row]))
        keys, values = self.keys[slot, :, :, held], self.values[slot, :, :, held]
        return SequenceKV.cut(keys, values, int(self._longest[row]), slot, self._cut)

    def prepare(self, *, right_padding: Sequence[int], **_lengths: object) -> None:
        """Of what is run next the last ``right_padding[b]`` positions are none of row b's."""
        self._padding = np.array(right_padding)

    def finalize(self) -> None:
        """It was run: forget the padding."""
        self.lengths = self.lengths - self._padding
        self._padding = np.zeros_like(self.lengths)

    def __deepcopy__(self, memo: object) -> BatchKV:
        """The same memory: BatchGenerator splits a batch by copying it, and then no row stays in both. Who writes to
        others' slots goes elsewhere before."""
        twin = copy.copy(self)
        self._owners.add(twin)
        return twin

    @property
    def state(self) -> tuple[()]:
        """No MLX arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        """Of the slots that were used: memory that was never written to takes none."""
        return int(self.keys[: self._used].nbytes + self.values[: self._used].nbytes)

    @property
    def _used(self) -> int:
        return int(np.flatnonzero(self._written).max(initial=-1)) + 1

    def _settle(self, rows: int, needed: int, longest: int = 0) -> None:
        """Let the rows be in the first slots, of ``rows`` with room for ``needed`` positions."""
        slots, *_, capacity, _ = self.keys.shape
        enough = max(needed, min(2 * needed + ROOM, max([longest, *self._longest])))
        apart = len(self._owners) == 1 or (rows == len(self.slots) and (self.slots < rows).all())
        wasteful = self._used * capacity > WASTE * rows * enough
        if rows > slots or needed > capacity or not apart or wasteful:
            self._move(rows, enough)
            return
        free = sorted(set(range(len(self.slots))) - set(self.slots.tolist()))
        self.slots = self.slots.copy()  # a twin may have the same
        for row, slot in zip(np.flatnonzero(self.slots >= len(self.slots)), free, strict=True):
            held = slice(0, int(self.lengths[row]))
            there = int(self.slots[row])
            self._put(slot, self.keys[there, :, :, held], self.values[there, :, :, held])
            self.slots[row] = slot

    def _move(self, rows: int, capacity: int) -> None:
        """Live in memory of one's own, with room for ``rows`` of ``capacity`` positions, and for more rows."""
        sequences = [self.extract(row) for row in range(len(self.lengths))]
        _, layers, heads, _, width = self.keys.shape
        self._owners.discard(self)
        shape = (2 * rows, layers, heads, capacity, width)
        self._hold(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
        for slot, sequence in enumerate(sequences):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.arange(len(sequences))

    def _put(self, slot: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write [layers, heads, n, width] to a slot nobody is in any more."""
        for sequence in [sequence for sequence, where in self._cut.items() if where == slot]:
            sequence.detach()
        length, written = keys.shape[2], int(self._written[slot])
        for side, new in ((self.keys, keys), (self.values, values)):
            side[slot, :, :, :length] = new
            side[slot, :, :, length:written] = 0
        self._written[slot] = length
