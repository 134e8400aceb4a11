"""Questions with known answers: read from rows, split for evaluation, drawn in passes that leave none out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from selfplay_ray.errors import ConfigError
from selfplay_ray.seeds import derive_rng, derive_seed

Row = Mapping[str, Any]
PLACE = re.compile(r"\{(\w+)\}")


class Problem(TypedDict):
    """``prompt`` is what is asked, ``answer`` what is right, ``row`` its number in the data set, from 0."""

    prompt: str
    answer: str
    row: int


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .json (a list of objects), .csv or .parquet file.

    Raises:
        ConfigError: it is of another kind, or can't be read as what it seems to be.
    """
    if path.suffix not in READERS:
        raise ConfigError(f"{path} is no data set: give a file that ends in {', '.join(READERS)}")
    try:
        yield from READERS[path.suffix](path)
    except OSError as error:
        raise ConfigError(f"data set {path} can't be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"data set {path} isn't valid {path.suffix.removeprefix('.')}: {error}") from None


def problems_from(
    rows: Iterable[Row],
    question_field: str = "question",
    answer_field: str = "answer",
    template: str = "{question}",
    limit: int = 0,
) -> list[Problem]:
    """The first ``limit`` rows as problems; 0 is all of them.

    ``{question}`` in ``template`` stands for the question, ``{NAME}`` for any other field.

    Raises:
        ConfigError: a row lacks a field or its answer, or there are no rows.
    """
    problems = [
        _problem(number, row, question_field, answer_field, template)
        for number, row in enumerate(islice(rows, limit or None))
    ]
    if not problems:
        raise ConfigError("the data set has no rows; there is nothing to ask")
    return problems


def hold_out(problems: Sequence[Problem], share: float) -> tuple[list[Problem], list[Problem]]:
    """``problems`` in two parts, for training and for evaluation. The same question is in one of them only, and, for
    the same data, always in the same one, whatever the run's seed. ``share`` of the questions, and at least one, are
    held out; with 0 none are.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    if share == 0:
        return list(problems), []
    questions = sorted({p["prompt"] for p in problems}, key=lambda prompt: derive_seed(0, "held out", prompt))
    held_out = set(questions[: max(1, round(share * len(questions)))])
    if len(held_out) == len(questions):
        raise ConfigError(
            f"{len(questions)} questions with {share:.0%} of them held out leave none to train on; hold out fewer"
        )
    parts: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        parts[problem["prompt"] in held_out].append(problem)
    return parts


def in_passes(problems: Sequence[Problem], start: int, count: int, seed: int) -> list[Problem]:
    """``count`` problems from place ``start`` of an order without end, in which every pass through all of them is
    shuffled anew. A run that remembers its place neither skips nor repeats any."""
    drawn: list[Problem] = []
    while len(drawn) < count:
        turn, place = divmod(start + len(drawn), len(problems))
        shuffled = derive_rng(seed, "pass", turn).sample(problems, len(problems))
        drawn += shuffled[place : place + count - len(drawn)]
    return drawn


def _problem(number: int, row: Row, question_field: str, answer_field: str, template: str) -> Problem:
    for field in (question_field, answer_field):
        if row.get(field) is None:
            raise ConfigError(
                f"row {number} of the data set has no {field!r}; its fields are {', '.join(row)}: choose with "
                "--question-field and --answer-field"
            )
    fields = {**row, "question": row[question_field]}
    prompt = PLACE.sub(lambda place: str(fields.get(place[1], place[0])), template)
    answer = row[answer_field]
    answer = json.dumps(answer) if isinstance(answer, (list, dict)) else str(answer).strip()
    if not answer:
        raise ConfigError(f"row {number} of the data set has an empty answer; nothing would be right")
    return Problem(prompt=prompt, answer=answer, row=number)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _object(json.loads(line), f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("it must be a list of objects")
    for number, row in enumerate(content):
        yield _object(row, f"item {number}")


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object")
    return row


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {name: value for name, value in row.items() if name is not None}


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise ConfigError(
            f"{path} is read by pyarrow, which isn't installed; it comes with an extra: "
            "pip install 'selfplay-ray[datasets]'"
        ) from None
    with ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
