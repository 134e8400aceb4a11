"""Micro-batches: what is run once, what a budget cuts, which token is trained from where, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.errors import TrainingError
from selfplay_ray.training.batching import StepPlan, plan_step
from selfplay_ray.training.micro_batch import LENGTH_BUCKET, MicroBatch
from selfplay_ray.types import PolicySpan, TrainingRecord

VOCABULARY = 1000

Row = tuple[list[tuple[tuple[int, ...], int, float]], float, float]


def plan(records: list[TrainingRecord], budget: int = 10_000, *, shared: bool = True) -> StepPlan:
    return plan_step(records, budget, VOCABULARY, shared=shared)


def read_before(batch: MicroBatch, position: int) -> tuple[int, ...]:
    """All tokens that the model has read at ``position``, first to last, as it sees them."""
    rows = [(run, row) for run in batch.passes for row in range(len(run.inputs))]
    width = batch.passes[0].inputs.shape[1]
    run, row = rows[position // width]
    tokens: list[int] = []
    for place, visible in zip(run.context[row], run.visible[row], strict=True):
        other, other_row = rows[place]
        tokens += other.inputs[other_row, :visible].tolist()
    assert run.starts[row] == len(tokens)
    return (*tokens, *run.inputs[row, : position % width + 1].tolist())


def trained(batch: MicroBatch) -> list[Row]:
    """What each row of a batch trains: tokens read, target and logprob of each token; advantage, temperature."""
    rows = []
    for row in range(len(batch.mask)):
        places = np.flatnonzero(batch.mask[row])
        tokens = [
            (
                read_before(batch, int(batch.positions[row, place])),
                int(batch.targets[row, place]),
                float(batch.behaviour_logprobs[row, place]),
            )
            for place in places
        ]
        rows.append((tokens, float(batch.advantages[row, 0]), float(batch.temperatures[row, 0])))
    return rows


def asked(record: TrainingRecord) -> Row:
    """The same of a record."""
    before = len(record.prompt_token_ids)
    tokens = [
        (record.input_ids[: before + place], token, logprob)
        for place, (token, logprob, counts) in enumerate(
            zip(record.completion_token_ids, record.logprobs, record.action_mask, strict=True)
        )
        if counts
    ]
    return (tokens, record.advantage, record.temperature)


def test_a_group_runs_its_prompt_once(record):
    prompt = list(range(100, 116))
    (batch,) = plan(
        [
            record("b", prompt, [7, 8], logprobs=[-0.5, -0.25], advantage=-1.0),
            record("a", prompt, [4, 5, 6], temperature=0.5, mask=[True, False, True]),
        ]
    ).batches
    (run,) = batch.passes
    # Sixteen tokens of prompt fill two pages; a completion's last token is read by nobody.
    assert run.inputs.tolist() == [
        prompt[:8],
        prompt[8:],
        [7, 0, 0, 0, 0, 0, 0, 0],
        [4, 5, 0, 0, 0, 0, 0, 0],
    ]
    assert run.starts.tolist() == [0, 8, 16, 16]
    assert run.context[2:].tolist() == [[0, 1], [0, 1]]
    assert run.visible.tolist() == [[0, 0], [8, 0], [8, 8], [8, 8]]
    # Both first tokens are predicted from the prompt's last, position 15; b's second from position 2 · 8.
    assert batch.positions[:, :2].tolist() == [[15, 16], [15, 25]]
    assert batch.targets[:, :2].tolist() == [[7, 8], [4, 6]]
    assert batch.mask[:, :3].tolist() == [[True, True, False]] * 2
    assert batch.behaviour_logprobs[0, :3].tolist() == [-0.5, -0.25, 0]
    assert batch.advantages[:, 0].tolist() == [-1, 1]
    assert batch.temperatures[:, 0].tolist() == [1, 0.5]
    assert (batch.tokens_run, batch.tokens_trained) == (4 * 8, 4)


def test_a_conversation_is_run_once_and_trained_at_every_turn(record):
    step = plan(
        [
            record("0", [1, 2], [3, 4]),
            record("1", [1, 2, 3, 4, 5], [6]),
            record("2", [1, 2, 3, 4, 5, 6, 7, 8], [9, 10]),
        ]
    )
    (batch,) = step.batches
    assert batch.passes[0].inputs.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, *[0] * 7]]
    assert batch.positions[:, :2].tolist() == [[1, 2], [4, 0], [7, 8]]
    assert step.distinct_tokens == 9


def test_the_same_completion_sampled_twice_is_run_once_and_trained_twice(record):
    step = plan([record("a", [1, 2], [3, 4], advantage=1.0), record("b", [1, 2], [3, 4], advantage=3.0)])
    (batch,) = step.batches
    assert (step.distinct_tokens, step.tokens_run, step.tokens_trained) == (3, 8, 4)
    assert batch.positions[:, :2].tolist() == [[1, 2], [1, 2]]
    assert batch.advantages[:, 0].tolist() == [1, 3]


def test_a_row_is_as_old_as_its_oldest_token(record):
    spans = [PolicySpan(0, 1, 4), PolicySpan(1, 3, 5)]
    (batch,) = plan([record("a", [1, 2], [3, 4, 5], spans=spans)]).batches
    assert set(batch.versions[0].tolist()) == {4}


def test_a_group_beyond_the_budget_is_split_and_its_prompt_run_again(record):
    group = [record(str(i), range(1, 41), [50 + i] * 9) for i in range(5)]
    # 40 tokens of prompt and 8 for each of the five, 80 in all: 60 hold two of them
    batches = plan(group, budget=60).batches
    assert [len(batch.mask) for batch in batches] == [2, 2, 1]
    assert [batch.tokens_run for batch in batches] == [56, 56, 48]


def test_a_record_beyond_the_budget_runs_by_itself(record):
    batches = plan([record("a", range(1, 50), [1]), record("b", [3], [4]), record("c", [5], [6])], 16).batches
    assert [len(batch.mask) for batch in batches] == [2, 1]
    assert batches[1].tokens_run >= 49


def test_without_sharing_each_record_is_a_row(record):
    (batch,) = plan([record("a", [1, 2, 3], [4]), record("b", [1, 2], [6, 7])], shared=False).batches
    (run,) = batch.passes
    assert run.inputs[:, :4].tolist() == [[1, 2, 3, 0], [1, 2, 6, 0]]
    assert run.context.shape == (2, 0)
    assert batch.positions[:, :2].tolist() == [[2, 0], [9, 10]]


def test_without_sharing_long_and_short_records_are_not_padded_to_each_other(record):
    short = [record(f"s{i}", [1, 2, 3], [i] * 6) for i in range(8)]
    batches = plan([*short, record("long", [1, 2, 3], [9] * 400)], shared=False).batches
    assert [batch.passes[0].inputs.shape for batch in batches] == [(8, 8), (1, 408)]
    assert [len(b.mask) for b in plan(short, 24, shared=False).batches] == [3, 3, 2]


def test_what_has_no_gradient_is_skipped_and_not_counted(record):
    step = plan(
        [
            record("a", [1], [2, 3], advantage=0.0),
            record("b", [1], [2, 3], mask=[False, False]),
            record("c", [1], [2, 3]),
        ]
    )
    assert ([one.id for one in step.records], step.skipped, step.tokens_trained) == (["c"], 2, 2)


def test_an_empty_step_has_no_batches():
    assert plan([]) == StepPlan((), (), 0, 0)
    assert plan([], shared=False) == StepPlan((), (), 0, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"advantage": float("nan")}, "record x has an advantage or a logprob that is not finite"),
        ({"logprobs": [-1.0, float("-inf")]}, "record x has an advantage or a logprob that is not finite"),
        ({"temperature": 0.0}, "record x was sampled at temperature 0.0"),
        ({"spans": [PolicySpan(0, 1, 3)]}, "record x of 2 tokens has policy versions for 1"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_named(record, wrong, message):
    with pytest.raises(TrainingError, match=message):
        plan([record("x", [1], [2, 3], **wrong)])


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_token_of_another_model_is_refused(record, token):
    with pytest.raises(TrainingError, match="record x holds a token outside the model's vocabulary of 1000"):
        plan([record("x", [1], [2, token])])


def test_nothing_is_trained_twice(record):
    with pytest.raises(TrainingError, match="record x was given twice"):
        plan([record("x", [1], [2]), record("x", [3], [4])])


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=30)
RECORDS = st.lists(
    st.tuples(TOKENS, TOKENS, st.sampled_from([0.0, 0.5, -2.0]), st.sampled_from([0.5, 1.0])), max_size=12
)


@given(
    drawn=RECORDS,
    budget=st.integers(1, 300),
    shuffle=st.integers(0, 99),
    shared=st.booleans(),
    data=st.data(),
)
def test_every_record_is_trained_once_whatever_the_budget_and_the_order(
    record, drawn, budget, shuffle, shared, data
):
    records = [
        record(
            f"r{index}",
            prompt,
            completion,
            advantage=advantage,
            logprobs=[-float(i + 1) for i in range(len(completion))],
            mask=data.draw(st.lists(st.booleans(), min_size=len(completion), max_size=len(completion))),
            temperature=temperature,
        )
        for index, (prompt, completion, advantage, temperature) in enumerate(drawn)
    ]
    step = plan(records, budget, shared=shared)
    rows = [row for batch in step.batches for row in trained(batch)]
    expected = [asked(r) for r in records if r.advantage != 0 and any(r.action_mask)]
    assert sorted(rows) == sorted(expected)
    for batch in step.batches:
        assert batch.tokens_run <= budget or is_one_path(batch)
        assert batch.mask.shape[1] % LENGTH_BUCKET == 0
        assert batch.passes[0].inputs.shape[1] % LENGTH_BUCKET == 0
    shuffled = random.Random(shuffle).sample(records, len(records))
    again = [trained(batch) for batch in plan(shuffled, budget, shared=shared).batches]
    assert again == [trained(batch) for batch in step.batches]


def is_one_path(batch: MicroBatch) -> bool:
    """Whether what its records read is all on one path: the least that a micro-batch can hold."""
    read = sorted((tokens[-1][0] for tokens, *_ in trained(batch)), key=len)
    return all(read[-1][: len(tokens)] == tokens for tokens in read)
