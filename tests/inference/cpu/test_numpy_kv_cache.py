"""A batch in NumPy holds for each row what was run for it, however rows are merged, left out and joined."""

from __future__ import annotations

import copy

import numpy as np

from selfplay_ray.inference.cpu.kv_cache import BatchKV, SequenceKV
from selfplay_ray.inference.kv_cache import ROOM

LAYERS, HEADS, WIDTH = 2, 3, 4


def sequence(length: int, value: int) -> SequenceKV:
    keys = value + np.arange(LAYERS * HEADS * length * WIDTH, dtype=np.float32) / 1e6
    keys = keys.reshape(LAYERS, HEADS, length, WIDTH)
    return SequenceKV(keys, -keys)


def holds(batch: BatchKV, *sequences: SequenceKV) -> bool:
    return [int(length) for length in batch.lengths] == [s.size() for s in sequences] and all(
        (batch.extract(row).keys == s.keys).all() and (batch.extract(row).values == s.values).all()
        for row, s in enumerate(sequences)
    )


def test_rows_are_merged_taken_left_out_and_joined() -> None:
    a, b, c, d = sequence(5, 1), sequence(0, 2), sequence(2 * ROOM, 3), sequence(1, 4)
    batch = SequenceKV.merge([a, b, c])
    assert holds(batch, a, b, c)
    assert holds(batch.take([2, 0]), c, a)
    batch.extend(SequenceKV.merge([d]))
    assert holds(batch, a, b, c, d)
    batch.filter([0, 3])
    assert holds(batch, a, d)
    assert batch.keys.shape[3] == 5 + ROOM  # the long row's memory is given back
    batch.extend(SequenceKV.merge([c]))
    assert holds(batch, a, d, c)


def test_a_batch_is_split_by_copying_it() -> None:
    a, b, c = (sequence(5, value) for value in (1, 2, 3))
    batch = SequenceKV.merge([a, b, c])
    other = copy.deepcopy(batch)
    batch.filter([1])
    other.filter([0, 2])
    batch.keys[:] = batch.values[:] = 0
    assert holds(other, a, c)


def test_the_last_position_is_handed_to_all_of_a_kind() -> None:
    a, b = sequence(5, 1), sequence(3, 2)
    batch = SequenceKV.merge([a, b, a, b])
    some = batch.take([0, 1])
    for row, length in enumerate((5, 3)):
        some.reserve(1)
        some.keys[:, row, :, length] = some.values[:, row, :, length] = row + 7
    batch.append_last(some, [0, 1, 0, 1])
    assert batch.lengths.tolist() == [6, 4, 6, 4]
    for row in range(4):
        assert (batch.extract(row).keys[:, :, -1] == row % 2 + 7).all()
        assert (batch.extract(row).values[:, :, -1] == row % 2 + 7).all()
        assert (batch.extract(row).keys[:, :, :-1] == (b if row % 2 else a).keys).all()


def test_it_grows_by_a_room_and_keeps_what_it_holds() -> None:
    a = sequence(5, 1)
    batch = SequenceKV.merge([a, a])
    room = batch.keys
    assert batch.reserve(ROOM) == 5 + ROOM
    assert batch.keys is room
    assert batch.reserve(ROOM + 1) == 5 + ROOM + 1
    assert batch.keys.shape == (LAYERS, 2, HEADS, 5 + ROOM + 1 + ROOM, WIDTH)
    assert holds(batch, a, a)


def test_rows_of_nothing_get_room_with_their_first_tokens() -> None:
    nothing = SequenceKV.new(LAYERS, HEADS, WIDTH)
    batch = SequenceKV.merge([nothing, nothing])
    assert batch.nbytes == 0
    assert batch.reserve(70) == 70
    assert batch.keys.shape == (LAYERS, 2, HEADS, 70 + ROOM, WIDTH)


def test_what_is_cut_from_a_batch_outlives_it() -> None:
    a = sequence(5, 1)
    batch = SequenceKV.merge([a])
    row = batch.extract(0)
    row.detach()
    batch.keys[:] = 0
    assert (row.keys == a.keys).all()
    assert (row.nbytes, row.keys.base) == (a.nbytes, None)


def test_trimming_leaves_the_one_it_was_copied_from() -> None:
    a = sequence(5, 1)
    shorter = copy.copy(a)
    assert shorter.trim(2) == 2
    assert (shorter.size(), a.size()) == (3, 5)
    assert (shorter.keys == a.keys[:, :, :3]).all()
    assert (shorter.trim(9), shorter.size()) == (3, 0)
