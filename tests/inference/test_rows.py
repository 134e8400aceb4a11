"""The state of rows: whatever a batch does to them, each keeps its ticket and its count of draws."""

from __future__ import annotations

import copy
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.decoding import to_spans
from selfplay_ray.inference.rows import Row, RowState
from selfplay_ray.inference.sampling import SamplingRow
from selfplay_ray.types import PolicySpan

SPEAKER = Adapter("live")


def row(ticket: int, kind: str | None = None) -> Row:
    return Row(ticket, SPEAKER, seed=100 + ticket, temperature=1.0, kind=kind)


def state(*tickets: int) -> RowState:
    return RowState.merge([RowState.of(row(ticket)) for ticket in tickets])


def test_advancing_counts_the_draws_of_each_row() -> None:
    rows = state(0, 1)
    rows.advance()
    rows.extend(state(2))
    assert rows.advance() == [
        SamplingRow(100, 1.0, 1),
        SamplingRow(101, 1.0, 1),
        SamplingRow(102, 1.0, 0),
    ]


def test_rows_of_one_kind_are_alike_until_something_was_drawn() -> None:
    rows = RowState.merge(
        [RowState.of(row(n, kind)) for n, kind in enumerate(["a", None, "b", "a", None, "b"])]
    )
    assert rows.kinds() == ([0, 1, 2, 4], [0, 1, 2, 0, 3, 2])
    rows.advance()
    assert rows.kinds() == (list(range(6)), list(range(6)))


def test_a_batch_has_ended_when_nothing_is_asked_of_any_row() -> None:
    rows = RowState.merge([RowState.of(replace(row(n), ends_after=limit)) for n, limit in enumerate([1, 2])])
    rows.advance()
    assert not rows.ended
    rows.advance()
    assert rows.ended
    rows.extend(state(2))  # of which the next turn may want the keys
    rows.advance()
    assert not rows.ended


def test_a_copy_is_of_the_same_speaker() -> None:
    assert copy.deepcopy(state(0)).rows[0].adapter is SPEAKER


def test_one_row_can_be_taken_out() -> None:
    rows = state(0, 1)
    rows.advance()
    assert rows.extract(1) == RowState([row(1)], [1])


@given(st.lists(st.sampled_from(["advance", "filter", "extend"]), max_size=12), st.data())
def test_rows_keep_their_own_counts(actions: list[str], data: st.DataObject) -> None:
    rows, expected, tickets = state(0), {0: 0}, iter(range(1, 20))
    for action in actions:
        if action == "advance":
            rows.advance()
            expected = {ticket: count + 1 for ticket, count in expected.items()}
        elif action == "extend":
            ticket = next(tickets)
            rows.extend(state(ticket))
            expected[ticket] = 0
        else:
            keep = sorted(data.draw(st.sets(st.sampled_from(range(len(rows.rows))), min_size=1)))
            expected = {rows.rows[index].ticket: expected[rows.rows[index].ticket] for index in keep}
            rows.filter(keep)
    assert {row.ticket: count for row, count in zip(rows.rows, rows.drawn, strict=True)} == expected


def test_versions_become_spans() -> None:
    assert to_spans([3, 3, 4, 4, 4, 6]) == (PolicySpan(0, 2, 3), PolicySpan(2, 5, 4), PolicySpan(5, 6, 6))
    assert to_spans([]) == ()
