"""Keys and values in NumPy: of one sequence, and of a batch that is written in place.

Rows of a batch begin at position 0 and end where they end: nothing is padded. Both are for all layers; of mlx-lm's
caches they have what batches and kept prefixes ask of any.

Memory the system hands out costs more than what is written to it, and a batch takes hundreds of megabytes. So rows
come and go in memory that stays: who leaves, leaves a slot for the next.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from selfplay_ray.inference.kv_cache import ROOM

WASTE = 2
"""Memory of which no more than one part in so many is of use is given back."""

UNBOUNDED = sys.maxsize
"""Where nothing is known of how long a sequence may become."""

POSITIONS = 16
"""A batch has room for a multiple of so many, and what is in common is read by as many."""


class Start(NamedTuple):
    """Where a row began: with a copy of the first ``length`` positions of ``source``."""

    source: object
    length: int


class SequenceKV:
    """Keys and values [layers, heads, n, width] of one sequence; never written to.

    ``longest`` is how many positions it may come to hold; ``begun``, where it is itself a row's, where that began.
    Copies of it are of one ``source``.
    """

    def __init__(
        self, keys: np.ndarray, values: np.ndarray, longest: int = UNBOUNDED, begun: Start | None = None
    ) -> None:
        self.keys, self.values, self.longest, self.begun = keys, values, longest, begun
        self.source = object()

    @classmethod
    def new(cls, layers: int, heads: int, width: int) -> Self:
        """Of a sequence of which nothing was run yet."""
        nothing = np.zeros((layers, heads, 0, width), dtype=np.float32)
        return cls(nothing, nothing)

    def growing_to(self, longest: int) -> SequenceKV:
        """The same, of which is known how many positions it may come to hold."""
        grown = copy.copy(self)
        grown.longest = longest
        return grown

    def detached(self) -> SequenceKV:
        """The same in memory of its own."""
        return SequenceKV(self.keys.copy(), self.values.copy())

    def size(self) -> int:
        return int(self.keys.shape[2])

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Forget the last ``count`` positions; how many these were."""
        left = max(0, self.size() - count)
        count, self.begun = self.size() - left, None
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
    """Keys and values of B rows, of which row b holds ``lengths[b]`` positions in slot ``slots[b]`` of ``keys`` and
    ``values`` [slots, layers, heads, capacity, width]. Who leaves, leaves a slot for the next; nobody moves."""

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._hold(keys, values)
        self.lengths, self.slots, self._longest = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._starts: list[Start] = []

    def _hold(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Live in this memory from now on, of which nothing was written to yet."""
        self.keys, self.values, self._used = keys, values, 0

    @classmethod
    def of(cls, sequences: Sequence[SequenceKV]) -> Self:
        """A batch of copies of ``sequences``, one at least."""
        layers, heads, _, width = sequences[0].keys.shape
        nothing = np.zeros((0, layers, heads, 0, width), dtype=np.float32)
        batch = cls(nothing, nothing)
        batch.append(sequences)
        return batch

    @property
    def heads(self) -> int:
        return int(self.keys.shape[2])

    def reserve(self, counts: np.ndarray) -> None:
        """Have room for ``counts`` [B] more positions of the rows, which will be written."""
        self._settle(0, int((self.lengths + counts).max()))
        self._used = max(self._used, int(self.slots.max()) + 1)

    def groups(self) -> list[list[int]]:
        """The rows, those together that have a beginning in common."""
        groups: dict[int, list[int]] = {}
        for row, start in enumerate(self._starts):
            groups.setdefault(id(start.source), []).append(row)
        return list(groups.values())

    def beginnings(self) -> tuple[np.ndarray, np.ndarray]:
        """The slot where a row's beginning may be read, int64[B], and how many positions that is, of which each has a
        copy; a multiple of POSITIONS."""
        sources, common = self.slots.copy(), np.zeros_like(self.slots)
        for first, *others in self.groups():
            if others:
                rows = [first, *others]
                sources[rows] = self.slots[first]
                common[rows] = min(self._starts[row].length for row in rows) // POSITIONS * POSITIONS
        return sources, common

    def append(self, sequences: Sequence[SequenceKV]) -> None:
        """Add rows that go on with copies of ``sequences``, which are not from this batch. Rows of a sequence that is
        given more than once have all of it in common, any other what the sequence had in common itself."""
        lengths = [sequence.size() for sequence in sequences]
        longest = [sequence.longest for sequence in sequences]
        self._settle(len(sequences), max([*lengths, *self.lengths]), max(longest))
        slots = self._free()[: len(sequences)]
        for slot, sequence in zip(slots, sequences, strict=True):
            self._put(slot, sequence)
        self.slots = np.concatenate([self.slots, slots])
        self.lengths = np.concatenate([self.lengths, lengths])
        self._longest = np.concatenate([self._longest, longest])
        times = Counter(id(sequence.source) for sequence in sequences)
        self._starts += [
            sequence.begun
            if sequence.begun is not None and times[id(sequence.source)] == 1
            else Start(sequence.source, sequence.size())
            for sequence in sequences
        ]

    def append_last(self, other: BatchKV, rows: Sequence[int]) -> None:
        """Let row b go on with the last position of ``other``'s row ``rows[b]``, which was as long."""
        self.reserve(np.ones_like(self.lengths))
        last, theirs = self.lengths, other.slots[list(rows)]
        # Indices on both sides of a slice: their axis comes first.
        self.keys[self.slots, :, :, last] = other.keys[theirs, :, :, last]
        self.values[self.slots, :, :, last] = other.values[theirs, :, :, last]
        self.lengths = last + 1

    def take(self, rows: Sequence[int]) -> BatchKV:
        """A batch of copies of ``rows``."""
        return BatchKV.of([self.extract(row) for row in rows])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows ``keep``; the others' slots are free for who comes."""
        kept = list(keep)
        self.lengths, self.slots = self.lengths[kept], self.slots[kept]
        self._longest = self._longest[kept]
        self._starts = [self._starts[row] for row in kept]

    def compact(self) -> None:
        """Give back the memory of slots that nobody is in any more."""
        if self._used > len(self.slots):
            self._move(len(self.slots), self._enough(int(self.lengths.max())))

    def extract(self, row: int) -> SequenceKV:
        """What row ``row`` holds, in the batch's memory: to be read before that gets other rows."""
        slot, held = int(self.slots[row]), slice(0, int(self.lengths[row]))
        keys, values = self.keys[slot, :, :, held], self.values[slot, :, :, held]
        return SequenceKV(keys, values, int(self._longest[row]), self._starts[row])

    @property
    def nbytes(self) -> int:
        """Of the slots that were used: memory that was never written to takes none."""
        return int(self.keys[: self._used].nbytes + self.values[: self._used].nbytes)

    def _free(self) -> np.ndarray:
        """The slots that nobody is in."""
        return np.setdiff1d(np.arange(len(self.keys)), self.slots)

    def _settle(self, more: int, needed: int, longest: int = 0) -> None:
        """Have slots for so many ``more`` rows, with room for ``needed`` positions."""
        rows, capacity = len(self.slots) + more, self.keys.shape[3]
        enough = self._enough(needed, longest)
        wasteful = self._used * capacity > WASTE * rows * enough
        if rows > len(self.keys) or needed > capacity or wasteful:
            self._move(rows, enough)

    def _enough(self, needed: int, longest: int = 0) -> int:
        """Positions to have room for, where ``needed`` are used now and a row may come to hold ``longest``."""
        enough: int = max(needed, min(2 * needed + ROOM, max([longest, *self._longest])))
        return -(-enough // POSITIONS) * POSITIONS

    def _move(self, rows: int, capacity: int) -> None:
        """Live in memory of one's own, with room for ``rows`` of ``capacity`` positions, and for more rows."""
        sequences = [self.extract(row) for row in range(len(self.slots))]
        _, layers, heads, _, width = self.keys.shape
        shape = 2 * rows, layers, heads, capacity, width
        self._hold(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
        self.slots = np.arange(len(sequences))
        for slot, sequence in enumerate(sequences):
            self._put(slot, sequence)

    def _put(self, slot: int, sequence: SequenceKV) -> None:
        """Write a sequence to a slot nobody is in."""
        if count := sequence.size():
            self.keys[slot, :, :, :count], self.values[slot, :, :, :count] = sequence.keys, sequence.values
            self._used = max(self._used, slot + 1)
