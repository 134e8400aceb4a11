"""Rows to problems, held out and drawn."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.errors import ConfigError
from selfplay_ray.problems import Problem, hold_out, in_passes, problems_from, read_rows

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "2, 3 or\n4?", "answer": "3"}]


def some(count: int) -> list[Problem]:
    return [Problem(prompt=f"What is {n}?", answer=str(n), row=n) for n in range(count)]


def test_the_same_rows_from_files_of_every_kind(tmp_path: Path):
    lines, listed, table = (tmp_path / name for name in ("rows.jsonl", "rows.json", "rows.csv"))
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    listed.write_text(json.dumps(ROWS))
    table.write_text('question,answer\n1 + 1?,2\n"2, 3 or\n4?",3\n')
    assert [list(read_rows(path)) for path in (lines, listed, table)] == [ROWS] * 3


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert list(read_rows(tmp_path / "rows.parquet")) == ROWS


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[datasets\]'"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "", r"rows.txt is no data set: give a file that ends in .jsonl, .json, .csv, .parquet"),
        ("rows.jsonl", '{"question": 1}\n{', r"rows.jsonl isn't valid jsonl: Expecting"),
        ("rows.jsonl", "[1]\n", r"rows.jsonl isn't valid jsonl: line 1 is no object"),
        ("rows.json", "{}", r"rows.json isn't valid json: it must be a list of objects"),
        ("rows.jsonl", b"\xff\xfe", r"rows.jsonl isn't valid jsonl: 'utf-8' codec"),
        ("rows.jsonl", None, r"rows.jsonl can't be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        list(read_rows(path))


def test_a_template_takes_any_field():
    rows = [{"q": "How many {legs}?", "legs": 8, "a": " 8 "}, {"q": "Which?", "legs": 6, "a": 6}]
    template = "A bug has {legs} legs. {question} {other}"
    assert problems_from(rows, "q", "a", template) == [
        {"prompt": "A bug has 8 legs. How many {legs}? {other}", "answer": "8", "row": 0},
        {"prompt": "A bug has 6 legs. Which? {other}", "answer": "6", "row": 1},
    ]
    assert len(problems_from(rows, "q", "a", limit=1)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (
            [{"question": "?", "solution": "2"}],
            r"row 0 .* has no 'answer'; its fields are question, solution",
        ),
        ([{"question": None, "answer": "2"}], r"row 0 .* has no 'question'"),
        ([ROWS[0], {"question": "?", "answer": " "}], "row 1 .* has an empty answer"),
    ],
)
def test_rows_that_ask_nothing_are_refused(rows: list[dict[str, object]], message: str):
    with pytest.raises(ConfigError, match=message):
        problems_from(rows)


def test_a_tenth_is_held_out_always_the_same():
    train, held_out = hold_out(some(50), 0.1)
    assert (len(train), len(held_out)) == (45, 5)
    shuffled, held_out_again = hold_out(some(50)[::-1], 0.1)
    assert {p["row"] for p in held_out_again} == {p["row"] for p in held_out}
    assert {p["row"] for p in train + held_out} == set(range(50))
    assert len(shuffled) == 45


def test_a_question_asked_twice_is_on_one_side():
    twice = [*some(20), *(Problem(prompt=p["prompt"], answer="!", row=20 + p["row"]) for p in some(20))]
    train, held_out = hold_out(twice, 0.25)
    assert len(held_out) == 10
    assert not {p["prompt"] for p in train} & {p["prompt"] for p in held_out}


def test_one_at_least_is_held_out_and_one_left():
    assert [len(part) for part in hold_out(some(3), 0.01)] == [2, 1]
    assert [len(part) for part in hold_out(some(3), 0)] == [3, 0]
    with pytest.raises(ConfigError, match="1 questions with 10% of them held out leave none"):
        hold_out(some(1), 0.1)


@given(st.integers(1, 7), st.lists(st.integers(1, 9), max_size=8), st.integers(0, 3))
def test_passes_leave_none_out_whatever_the_batches(size: int, batches: list[int], seed: int):
    drawn: list[int] = []
    for count in batches:
        drawn += [p["row"] for p in in_passes(some(size), len(drawn), count, seed)]
    assert len(drawn) == sum(batches)
    for start in range(0, len(drawn) - size + 1, size):
        assert Counter(drawn[start : start + size]) == Counter(range(size))


def test_each_pass_is_shuffled_anew():
    passes = [[p["row"] for p in in_passes(some(20), start, 20, seed=0)] for start in (0, 20)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert passes[0] != passes[1]
    assert passes[0] != [p["row"] for p in in_passes(some(20), 0, 20, seed=1)]
