"""A batch in NumPy holds for each row what was run for it, however rows are merged, left out and joined."""

from __future__ import annotations

import copy

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.cpu.kv_cache import POSITIONS, UNBOUNDED, BatchKV, SequenceKV
from selfplay_ray.inference.kv_cache import ROOM

LAYERS, HEADS, WIDTH = 2, 3, 4


def sequence(length: int, value: int, longest: int = UNBOUNDED) -> SequenceKV:
    keys = value + np.arange(LAYERS * HEADS * length * WIDTH, dtype=np.float32) / 1e6
    values = keys.reshape(LAYERS, HEADS, length, WIDTH)
    return SequenceKV(-values, values, longest)


def up(positions: int) -> int:
    return -(-positions // POSITIONS) * POSITIONS


def same(a: SequenceKV, b: SequenceKV) -> bool:
    return bool(np.array_equal(a.keys, b.keys) and np.array_equal(a.values, b.values))


def holds(batch: BatchKV, *sequences: SequenceKV) -> bool:
    return len(batch.lengths) == len(sequences) and all(
        same(batch.extract(row), sequence) for row, sequence in enumerate(sequences)
    )


def assert_told(batch: BatchKV) -> None:
    """Where a row's beginning is said to be it is."""
    assert sorted(row for group in batch.groups() for row in group) == list(range(len(batch.slots)))
    for slot, source, common in zip(batch.slots, *batch.beginnings(), strict=True):
        assert common % POSITIONS == 0
        for side in (batch.keys, batch.values):
            assert (side[slot, :, :, :common] == side[source, :, :, :common]).all()


def reserve(batch: BatchKV, count: int) -> int:
    """Room for as many more positions of every row; how long the longest then is."""
    batch.reserve(np.full_like(batch.lengths, count))
    return int(batch.lengths.max()) + count


def run(batch: BatchKV, value: int) -> SequenceKV:
    """Write one position to every row, as a forward pass does; what was written."""
    rows = len(batch.lengths)
    length = reserve(batch, 1)
    assert len(set(batch.slots.tolist())) == rows
    assert length <= batch.keys.shape[3]
    assert_told(batch)
    new = sequence(1, value)
    for slot, at in zip(batch.slots, batch.lengths, strict=True):
        batch.keys[slot, :, :, at], batch.values[slot, :, :, at] = new.keys[:, :, 0], new.values[:, :, 0]
    batch.lengths = batch.lengths + 1
    return new


def joined(a: SequenceKV, b: SequenceKV) -> SequenceKV:
    return SequenceKV(np.concatenate([a.keys, b.keys], axis=2), np.concatenate([a.values, b.values], axis=2))


def test_rows_are_merged_taken_left_out_and_joined() -> None:
    a, b, c, d = sequence(5, 1), sequence(0, 2), sequence(2 * ROOM, 3), sequence(1, 4)
    batch = BatchKV.of([a, b, c])
    assert holds(batch, a, b, c)
    assert holds(batch.take([2, 0]), c, a)
    batch.append([d])
    assert holds(batch, a, b, c, d)
    batch.filter([0, 3])
    assert holds(batch, a, d)
    batch.append([c])
    assert holds(batch, a, d, c)


@given(st.data())
def test_whatever_happens_rows_hold_what_was_run_for_them(data: st.DataObject) -> None:
    rows = [sequence(data.draw(st.integers(0, 9)), value) for value in range(3)]
    batch, cut = BatchKV.of(rows), list[tuple[SequenceKV, SequenceKV]]()
    for value in range(10, 30):
        match data.draw(st.sampled_from(["run", "filter", "append", "cut"])):
            case "run":
                new = run(batch, value)
                rows = [joined(row, new) for row in rows]
            case "filter" if len(rows) > 1:
                keep = sorted(data.draw(st.sets(st.sampled_from(range(len(rows))), min_size=1)))
                batch.filter(keep)
                rows = [rows[row] for row in keep]
            case "append":
                first = sequence(data.draw(st.integers(0, 2 * ROOM)), value)
                shorter = copy.copy(first)
                shorter.trim(data.draw(st.sampled_from([0, 1, ROOM])))
                others = [first] * data.draw(st.integers(1, 9)) + [shorter] * data.draw(st.integers(0, 2))
                batch.append(others)
                rows += others
            case "cut":
                row = data.draw(st.sampled_from(range(len(rows))))
                cut.append((batch.extract(row).detached(), rows[row]))
        assert holds(batch, *rows)
        assert all(same(*pair) for pair in cut)


def test_who_comes_takes_the_memory_of_who_has_left() -> None:
    rows = [sequence(5, 1), sequence(9, 2), sequence(5, 3)]
    batch = BatchKV.of(rows)
    memory = batch.keys
    for value in range(4, 9):
        batch.filter([0, 2])
        batch.append([sequence(4, value)])
        new = run(batch, 10 * value)
        rows = [joined(row, new) for row in (rows[0], rows[2], sequence(4, value))]
        assert holds(batch, *rows)
    assert batch.keys is memory


def read_from(batch: BatchKV) -> list[tuple[int, int]]:
    """The row whose slot each row's beginning is read from, and how many positions."""
    rows = {int(slot): row for row, slot in enumerate(batch.slots)}
    return [(rows[int(source)], int(common)) for source, common in zip(*batch.beginnings(), strict=True)]


def test_rows_of_a_common_beginning_read_it_from_one_of_them() -> None:
    a, b = sequence(200, 1), sequence(140, 2)
    batch = BatchKV.of([sequence(9, 3), a, a, b, a, b])
    assert read_from(batch) == [(0, 0), (1, 192), (1, 192), (3, 128), (1, 192), (3, 128)]
    assert batch.groups() == [[0], [1, 2, 4], [3, 5]]
    batch.filter([0, 2, 3, 4])  # who the others read from has left
    assert read_from(batch) == [(0, 0), (1, 192), (2, 0), (1, 192)]
    batch.filter([1, 2])  # one of each: nothing is in common any more
    assert read_from(batch) == [(0, 0), (1, 0)]
    trimmed = copy.copy(a)
    trimmed.trim(100)
    assert read_from(BatchKV.of([a, trimmed])) == [(0, 96), (0, 96)]


def test_rows_that_go_on_elsewhere_are_still_of_their_common_beginning() -> None:
    a = sequence(200, 1)
    prompts = BatchKV.of([a, a, a, a])
    for value in range(4, 4 + POSITIONS):
        run(prompts, value)
    batch = BatchKV.of([prompts.extract(row) for row in (2, 1, 0)])
    assert read_from(batch) == [(0, 192)] * 3
    longer = prompts.extract(3)
    assert read_from(BatchKV.of([longer, longer.growing_to(300), longer])) == [(0, 208)] * 3


def test_what_is_no_longer_worth_keeping_is_given_back() -> None:
    short, long = sequence(5, 1), sequence(50 * ROOM, 3)
    batch = BatchKV.of([short, long])
    batch.filter([0])
    reserve(batch, 1)
    assert batch.nbytes < 2 * LAYERS * HEADS * (6 + ROOM) * WIDTH * 4 * 2
    assert holds(batch, short)
    batch = BatchKV.of([short] * 32)
    batch.filter([31])
    reserve(batch, 1)
    assert batch.nbytes < BatchKV.of([short] * 3).nbytes
    assert holds(batch, short)


def test_the_last_position_is_handed_to_all_of_a_kind() -> None:
    a, b = sequence(5, 1), sequence(3, 2)
    batch = BatchKV.of([a, b, a, b])
    some = batch.take([0, 1])
    reserve(some, 1)
    for row, length in enumerate((5, 3)):
        some.keys[row, :, :, length] = some.values[row, :, :, length] = row + 7
    batch.append_last(some, [0, 1, 0, 1])
    assert batch.lengths.tolist() == [6, 4, 6, 4]
    for row in range(4):
        assert (batch.extract(row).keys[:, :, -1] == row % 2 + 7).all()
        assert (batch.extract(row).values[:, :, -1] == row % 2 + 7).all()
        assert (batch.extract(row).keys[:, :, :-1] == (b if row % 2 else a).keys).all()


def test_it_has_room_for_what_a_row_may_come_to_hold() -> None:
    a = sequence(5, 1, longest=48)
    batch = BatchKV.of([a, a])
    room = batch.keys
    assert reserve(batch, 43) == 48
    assert batch.keys is room
    assert room.shape[3] == 48
    assert reserve(batch, 44) == 49  # it was mistaken
    assert batch.keys.shape[3] >= 49
    assert holds(batch, a, a)


def test_it_grows_step_by_step_where_a_row_may_come_to_hold_much() -> None:
    batch = BatchKV.of([sequence(5, 1, longest=10**6)])
    assert batch.keys.shape[3] == up(2 * 5 + ROOM)
    assert reserve(batch, ROOM + 12) == 5 + ROOM + 12
    assert batch.keys.shape[3] == up(2 * (5 + ROOM + 12) + ROOM)


def test_rows_of_nothing_take_nothing() -> None:
    nothing = SequenceKV.new(LAYERS, HEADS, WIDTH)
    batch = BatchKV.of([nothing, nothing])
    assert batch.nbytes == 0
    assert reserve(batch, 70) == 70
    assert batch.keys.shape[3] == up(2 * 70 + ROOM)


def test_what_is_cut_from_a_batch_outlives_it() -> None:
    a = sequence(5, 1)
    batch = BatchKV.of([a])
    row = batch.extract(0).detached()
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
