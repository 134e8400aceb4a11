"""The state of rows: whatever a batch does to them, each keeps its ticket and its count of draws."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.decoding import to_spans
from selfplay_ray.inference.rows import Row, RowState
from selfplay_ray.inference.sampling import SamplingRow
from selfplay_ray.types import PolicySpan

SPEAKER = Adapter("live")


def row(ticket: int) -> Row:
    return Row(ticket, SPEAKER, seed=100 + ticket, temperature=1.0)


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
