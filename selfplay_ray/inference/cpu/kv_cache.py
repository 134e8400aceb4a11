"""Keys and values in NumPy: of one sequence, and of a batch that is written in place.

Rows of a batch begin at position 0 and end where they end: nothing is padded. Both are for all layers; of mlx-lm's
caches they have what batches and kept prefixes ask of any.

Memory the system hands out costs more than what is written to it, and a batch takes hundreds of megabytes. So rows
come and go in memory that stays: who leaves, leaves a slot for the next.
"""

from __future__ import annotations

import copy
import itertools
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
"""A batch has room for a multiple of so many."""

WORTH_SHARING = 256
"""Positions that are not read again: for fewer it isn't worth it to look at rows of a common beginning together."""


class Start(NamedTuple):
    """Where a row began: with a copy of the first ``length`` positions of ``source``."""

    source: object
    length: int


class SequenceKV:
    """Keys [layers, heads, width, n] and values [layers, heads, n, width] of one sequence; never written to.

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
        keys = np.zeros((layers, heads, width, 0), dtype=np.float32)
        return cls(keys, keys.swapaxes(-1, -2))

    def growing_to(self, longest: int) -> SequenceKV:
        """The same, of which is known how many positions it may come to hold."""
        grown = copy.copy(self)
        grown.longest = longest
        return grown

    def detached(self) -> SequenceKV:
        """The same in memory of its own."""
        return SequenceKV(self.keys.copy(), self.values.copy())

    def size(self) -> int:
        return int(self.keys.shape[3])

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Forget the last ``count`` positions; how many these were."""
        left = max(0, self.size() - count)
        count, self.begun = self.size() - left, None
        self.keys, self.values = self.keys[..., :left], self.values[..., :left, :]
        return count

    @property
    def state(self) -> tuple[()]:
        """No MLX arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


class Run(NamedTuple):
    """Slots from ``start`` to ``stop`` of whose rows the first ``shared`` positions are the same."""

    start: int
    stop: int
    shared: int


class BatchKV:
    """Keys and values of B rows, of which row b holds ``lengths[b]`` positions in slot ``slots[b]`` of ``keys``
    [slots, layers, heads, width, capacity] and ``values`` [slots, layers, heads, capacity, width].

    When a batch is run its rows fill the first B slots, in any order but that rows of a common beginning which came
    together stay beside each other. Rows stay where they are as others leave, but some that fill the gaps.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._hold(keys, values)
        self.lengths, self.slots, self._longest = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._starts: list[Start] = []

    def _hold(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Live in this memory, of zeros, from now on."""
        self.keys, self.values = keys, values
        # How far each slot was ever written, beyond which there are zeros: what a row doesn't attend to is multiplied
        # with zero, and must be a number.
        self._written = np.zeros(len(keys), dtype=np.int64)

    @classmethod
    def of(cls, sequences: Sequence[SequenceKV]) -> Self:
        """A batch of copies of ``sequences``, one at least."""
        layers, heads, width, _ = sequences[0].keys.shape
        keys = np.zeros((0, layers, heads, width, 0), dtype=np.float32)
        batch = cls(keys, keys.swapaxes(-1, -2))
        batch.append(sequences)
        return batch

    def reserve(self, counts: np.ndarray) -> None:
        """Let the rows be in the first slots and have room for ``counts`` [B] more positions, which will be written."""
        lengths = self.lengths + counts
        self._settle(len(lengths), int(lengths.max()))
        self._written[self.slots] = np.maximum(self._written[self.slots], lengths)

    def runs(self, unit: int) -> list[Run]:
        """The first B slots, as few runs as possible; ``shared`` are multiples of ``unit``."""
        runs: list[Run] = []
        rows, groups = np.argsort(self.slots), self._groups()
        for source, group in itertools.groupby(range(len(rows)), lambda slot: groups[rows[slot]]):
            slots = [*group]
            start, stop = slots[0], slots[-1] + 1
            common = min(self._starts[rows[slot]].length for slot in slots) // unit * unit
            shared = common if source and len(slots) > 1 else 0
            if runs and not shared and not runs[-1].shared:
                start = runs.pop().start
            runs.append(Run(start, stop, shared))
        return runs

    def append(self, sequences: Sequence[SequenceKV]) -> None:
        """Add rows that go on with copies of ``sequences``, which are not from this batch. Rows of a sequence that is
        given more than once have all of it in common, any other what the sequence had in common itself."""
        rows, lengths = len(self.lengths), [sequence.size() for sequence in sequences]
        longest = [sequence.longest for sequence in sequences]
        self._settle(rows + len(sequences), max([*lengths, *self.lengths]), max(longest))
        for slot, sequence in enumerate(sequences, start=rows):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.concatenate([self.slots, np.arange(rows, rows + len(sequences))])
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
        """Let row b go on with the last position of ``other``'s row ``rows[b]``, which was as long. The rows of
        ``other`` are in their order, as ``take`` has put them."""
        self.reserve(np.ones_like(self.lengths))
        last, theirs = self.lengths, list(rows)
        # Indices on both sides of a slice: their axis comes first.
        self.keys[self.slots, ..., last] = other.keys[theirs, ..., last]
        self.values[self.slots, :, :, last] = other.values[theirs, :, :, last]
        self.lengths = last + 1

    def take(self, rows: Sequence[int]) -> BatchKV:
        """A batch of copies of ``rows``."""
        return BatchKV.of([self.extract(row) for row in rows])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows ``keep``; the others' slots are free when the batch is run or extended next."""
        kept = list(keep)
        self.lengths, self.slots = self.lengths[kept], self.slots[kept]
        self._longest = self._longest[kept]
        self._starts = [self._starts[row] for row in kept]

    def compact(self) -> None:
        """Give back the memory of slots that nobody is in any more."""
        if self._used > len(self.slots):
            self._move(len(self.slots), self._enough(int(self.lengths.max())))

    def extract(self, row: int) -> SequenceKV:
        """What row ``row`` holds, in the batch's memory: to be read before that is run or gets other rows."""
        slot, held = int(self.slots[row]), slice(0, int(self.lengths[row]))
        keys, values = self.keys[slot, ..., held], self.values[slot, ..., held, :]
        return SequenceKV(keys, values, int(self._longest[row]), self._starts[row])

    @property
    def nbytes(self) -> int:
        """Of the slots that were used: memory that was never written to takes none."""
        return int(self.keys[: self._used].nbytes + self.values[: self._used].nbytes)

    @property
    def _used(self) -> int:
        return int(np.flatnonzero(self._written).max(initial=-1)) + 1

    def _groups(self) -> list[object | None]:
        """For each row the source of which it and others have so much that it is worth being beside each other."""
        rows = Counter(id(start.source) for start in self._starts)
        return [
            source if (rows[id(source)] - 1) * length >= WORTH_SHARING else None
            for source, length in self._starts
        ]

    def _settle(self, rows: int, needed: int, longest: int = 0) -> None:
        """Let the rows be in the first slots, of ``rows`` with room for ``needed`` positions."""
        slots, *_, capacity = self.keys.shape
        enough = self._enough(needed, longest)
        wasteful = self._used * capacity > WASTE * rows * enough
        if rows > slots or needed > capacity or wasteful:
            self._move(rows, enough)
            return
        there = dict(sorted((int(slot), row) for row, slot in enumerate(self.slots)))
        for gap in sorted(set(range(len(there))) - set(there)):
            self._close(gap, there)

    def _enough(self, needed: int, longest: int = 0) -> int:
        """Positions to have room for, where ``needed`` are used now and a row may come to hold ``longest``."""
        enough: int = max(needed, min(2 * needed + ROOM, max([longest, *self._longest])))
        return -(-enough // POSITIONS) * POSITIONS

    def _close(self, gap: int, there: dict[int, int]) -> None:
        """Fill ``gap``; ``there`` are the rows by their slots, and are kept so. Of every group behind the gap the last
        row moves to before its first, so that all stay together."""
        groups, behind = self._groups(), [slot for slot in sorted(there) if slot > gap]
        for _, group in itertools.groupby(behind, lambda slot: groups[there[slot]]):
            *_, last = group
            row = there.pop(last)
            held = slice(0, int(self.lengths[row]))
            self._put(gap, self.keys[last, ..., held], self.values[last, ..., held, :])
            self.slots[row], there[gap], gap = gap, row, last

    def _move(self, rows: int, capacity: int) -> None:
        """Live in memory of one's own, with room for ``rows`` of ``capacity`` positions, and for more rows."""
        sequences = [self.extract(row) for row in np.argsort(self.slots)]
        _, layers, heads, width, _ = self.keys.shape
        keys = np.zeros((2 * rows, layers, heads, width, capacity), dtype=np.float32)
        self._hold(keys, np.zeros((2 * rows, layers, heads, capacity, width), dtype=np.float32))
        for slot, sequence in enumerate(sequences):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.argsort(np.argsort(self.slots))

    def _put(self, slot: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write keys [layers, heads, width, n] and values [layers, heads, n, width] to a slot nobody is in any more."""
        length, written = keys.shape[3], int(self._written[slot])
        self.keys[slot, ..., :length], self.values[slot, ..., :length, :] = keys, values
        self.keys[slot, ..., length:written], self.values[slot, ..., length:written, :] = 0, 0
        self._written[slot] = length
