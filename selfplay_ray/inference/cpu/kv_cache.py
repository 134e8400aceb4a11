"""Keys and values in NumPy: of one sequence, and of a batch that is written in place.

Rows of a batch begin at position 0 and end where they end, so nothing is padded on the left, and right padding is
undone by counting it off. Both speak the protocol of mlx-lm's caches, once for all layers.

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
from weakref import WeakKeyDictionary, WeakSet

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


class SequenceKV:
    """Keys [layers, heads, width, n] and values [layers, heads, n, width] of one sequence; never written to.

    ``longest`` is how many positions it may come to hold. Sequences of one ``source`` were copied from the same, and
    begin alike. What was cut from a batch lies in a slot of the batch's memory until it is detached; the batch does
    that itself before it gives the slot to others, of which it knows by ``cut``.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, longest: int = UNBOUNDED) -> None:
        self.keys, self.values, self.longest = keys, values, longest
        self.source: Source = object()
        self._cut: Cut | None = None

    @classmethod
    def new(cls, layers: int, heads: int, width: int) -> Self:
        """Of a sequence of which nothing was run yet."""
        keys = np.zeros((layers, heads, width, 0), dtype=np.float32)
        return cls(keys, keys.swapaxes(-1, -2))

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
        layers, heads, width, _ = sequences[0].keys.shape
        batch = BatchKV.empty(layers, heads, width)
        batch.append(sequences, [sequence.start for sequence in sequences])
        return batch

    def __copy__(self) -> SequenceKV:
        if self._cut is None:
            twin = SequenceKV(self.keys, self.values, self.longest)
        else:
            twin = SequenceKV.cut(self.keys, self.values, self.longest, self._cut[self], self._cut)
        twin.source = self.source
        return twin

    @property
    def start(self) -> Start:
        """What rows that go on with it have in common."""
        return Start(self.source, self.size())

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
        return int(self.keys.shape[3])

    def is_trimmable(self) -> bool:
        return True

    def trim(self, count: int) -> int:
        """Forget the last ``count`` positions; how many these were."""
        left = max(0, self.size() - count)
        count = self.size() - left
        self.keys, self.values = self.keys[..., :left], self.values[..., :left, :]
        return count

    @property
    def state(self) -> tuple[()]:
        """No MLX arrays to evaluate."""
        return ()

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


Source = object

Cut = WeakKeyDictionary[SequenceKV, int]
"""Sequences that lie in a batch's memory, and in which slot."""


class Start(NamedTuple):
    """Where a row began: with a copy of the first ``length`` positions of ``source``."""

    source: Source
    length: int


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
        self._padding: Sequence[int] = ()
        self._starts: list[Start] = []

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
        keys = np.zeros((0, layers, heads, width, 0), dtype=np.float32)
        return cls(keys, keys.swapaxes(-1, -2))

    def reserve(self, count: int) -> int:
        """Let the rows be in the first slots and have room for ``count`` more positions, which will be written; how
        many positions there are then to be looked at."""
        needed = int(self.lengths.max()) + count
        self._settle(len(self.lengths), needed)
        self._written[self.slots] = np.maximum(self._written[self.slots], self.lengths + count)
        return needed

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

    def append(self, sequences: Sequence[SequenceKV], starts: Sequence[Start]) -> None:
        """Add rows that go on with copies of ``sequences``, and have begun with ``starts``."""
        rows, lengths = len(self.lengths), [sequence.size() for sequence in sequences]
        longest = [sequence.longest for sequence in sequences]
        self._settle(rows + len(sequences), max([*lengths, *self.lengths]), max(longest))
        for slot, sequence in enumerate(sequences, start=rows):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.concatenate([self.slots, np.arange(rows, rows + len(sequences))])
        self.lengths = np.concatenate([self.lengths, lengths])
        self._longest = np.concatenate([self._longest, longest])
        self._starts = [*self._starts, *starts]

    def append_last(self, other: BatchKV, rows: Sequence[int]) -> None:
        """Let row b go on with the last position of ``other``'s row ``rows[b]``, which was as long. The rows of
        ``other`` are in their order, as ``take`` has put them."""
        self.reserve(1)
        last, theirs = self.lengths, list(rows)
        # Indices on both sides of a slice: their axis comes first.
        self.keys[self.slots, ..., last] = other.keys[theirs, ..., last]
        self.values[self.slots, :, :, last] = other.values[theirs, :, :, last]
        self.lengths = last + 1

    def take(self, rows: Sequence[int]) -> BatchKV:
        """A batch of copies of ``rows``."""
        return SequenceKV.merge([self.extract(row) for row in rows])

    def filter(self, keep: Sequence[int]) -> None:
        """Keep the rows ``keep``; the others' slots are free when the batch is run or extended next."""
        kept = list(keep)
        self.lengths, self.slots = self.lengths[kept], self.slots[kept]
        self._longest = self._longest[kept]
        self._starts = [self._starts[row] for row in kept]

    def extend(self, other: BatchKV) -> None:
        """Let the rows of ``other`` follow one's own."""
        self.append([other.extract(row) for row in range(len(other.lengths))], other._starts)

    def extract(self, row: int) -> SequenceKV:
        """What row ``row`` holds, still in the batch's memory."""
        slot, held = int(self.slots[row]), slice(0, int(self.lengths[row]))
        keys, values = self.keys[slot, ..., held], self.values[slot, ..., held, :]
        return SequenceKV.cut(keys, values, int(self._longest[row]), slot, self._cut)

    def prepare(self, *, right_padding: Sequence[int], **_lengths: object) -> None:
        """Of what is run next the last ``right_padding[b]`` positions are none of row b's."""
        self._padding = right_padding

    def finalize(self) -> None:
        """It was run: forget the padding."""
        self.lengths = self.lengths - np.array(self._padding)

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

    def _groups(self) -> list[Source | None]:
        """For each row the source of which it and others have so much that it is worth being beside each other."""
        rows = Counter(id(start.source) for start in self._starts)
        return [
            source if (rows[id(source)] - 1) * length >= WORTH_SHARING else None
            for source, length in self._starts
        ]

    def _settle(self, rows: int, needed: int, longest: int = 0) -> None:
        """Let the rows be in the first slots, of ``rows`` with room for ``needed`` positions."""
        slots, *_, capacity = self.keys.shape
        enough = max(needed, min(2 * needed + ROOM, max([longest, *self._longest])))
        enough = -(-enough // POSITIONS) * POSITIONS
        apart = len(self._owners) == 1 or (rows == len(self.slots) and (self.slots < rows).all())
        wasteful = self._used * capacity > WASTE * rows * enough
        if rows > slots or needed > capacity or not apart or wasteful:
            self._move(rows, enough)
            return
        there = dict(sorted((int(slot), row) for row, slot in enumerate(self.slots)))
        for gap in sorted(set(range(len(there))) - set(there)):
            self._close(gap, there)

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
        self._owners.discard(self)
        keys = np.zeros((2 * rows, layers, heads, width, capacity), dtype=np.float32)
        self._hold(keys, np.zeros((2 * rows, layers, heads, capacity, width), dtype=np.float32))
        for slot, sequence in enumerate(sequences):
            self._put(slot, sequence.keys, sequence.values)
        self.slots = np.argsort(np.argsort(self.slots))

    def _put(self, slot: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write keys [layers, heads, width, n] and values [layers, heads, n, width] to a slot nobody is in any more."""
        for sequence in [sequence for sequence, where in self._cut.items() if where == slot]:
            sequence.detach()
        length, written = keys.shape[3], int(self._written[slot])
        self.keys[slot, ..., :length], self.values[slot, ..., :length, :] = keys, values
        self.keys[slot, ..., length:written], self.values[slot, ..., length:written, :] = 0, 0
        self._written[slot] = length
