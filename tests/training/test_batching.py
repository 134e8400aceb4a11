"""Micro-batches: what shares a prompt, what is padded, what a budget cuts, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.errors import TrainingError
from selfplay_ray.training.batching import LENGTH_BUCKET, MicroBatch, StepPlan, plan_step
from selfplay_ray.types import PolicySpan, TrainingRecord

VOCABULARY = 1000


def plan(records: list[TrainingRecord], budget: int = 10_000) -> StepPlan:
    return plan_step(records, budget, VOCABULARY)


def trained(batch: MicroBatch) -> list[tuple[tuple[int, ...], tuple[float, ...], float, float]]:
    """What each row of a batch trains: all tokens up to each target's end, logprobs, advantage, temperature."""
    rows = []
    for row in range(len(batch.inputs)):
        positions = np.flatnonzero(batch.mask[row])
        tokens = (*batch.prefix, *batch.inputs[row, : positions[-1] + 1], batch.targets[row, positions[-1]])
        rows.append(
            (
                tuple(int(token) for token in tokens),
                tuple(float(logprob) for logprob in batch.behaviour_logprobs[row, positions]),
                float(batch.advantages[row, positions[0]]),
                float(batch.temperatures[row, positions[0]]),
            )
        )
    return rows


def test_a_group_runs_its_prompt_once(record):
    (batch,) = plan(
        [
            record("b", [1, 2, 3], [7, 8], logprobs=[-0.5, -0.25], advantage=-1.0),
            record("a", [1, 2, 3], [4, 5, 6], temperature=0.5, mask=[True, False, True]),
        ]
    ).batches
    # The last prompt token is the first input: it is what the first completion token is predicted from.
    assert batch.prefix.tolist() == [1, 2]
    assert batch.inputs.tolist() == [[3, 4, 5, 0, 0, 0, 0, 0], [3, 7, 0, 0, 0, 0, 0, 0]]
    assert batch.targets[:, :3].tolist() == [[4, 5, 6], [7, 8, 0]]
    assert batch.mask[:, :4].tolist() == [[True, False, True, False], [True, True, False, False]]
    assert batch.behaviour_logprobs[1, :3].tolist() == [-0.5, -0.25, 0]
    assert batch.advantages[:, 0].tolist() == [1, -1]
    assert batch.temperatures[:, 0].tolist() == [0.5, 1]
    assert (batch.tokens_run, batch.tokens_trained) == (2 + 2 * 8, 4)


def test_records_alone_with_their_prompts_become_rows_side_by_side(record):
    (batch,) = plan([record("a", [1, 2, 3], [4]), record("b", [5], [6, 7])]).batches
    assert batch.prefix.size == 0
    assert batch.inputs[:, :4].tolist() == [[1, 2, 3, 0], [5, 6, 0, 0]]
    assert batch.targets[:, :4].tolist() == [[2, 3, 4, 0], [6, 7, 0, 0]]
    assert batch.mask[:, :4].tolist() == [[False, False, True, False], [True, True, False, False]]


def test_a_row_is_as_old_as_its_oldest_token(record):
    spans = [PolicySpan(0, 1, 4), PolicySpan(1, 3, 5)]
    (batch,) = plan([record("a", [1, 2], [3, 4, 5], spans=spans)]).batches
    assert set(batch.versions[0].tolist()) == {4}


def test_a_group_beyond_the_budget_is_split_and_its_prompt_run_again(record):
    group = [record(str(i), range(1, 42), [50 + i] * 8) for i in range(5)]
    # 40 tokens of prefix and 8 for each row: 60 hold two rows
    batches = plan(group, budget=60).batches
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert all(batch.prefix.size == 40 for batch in batches)
    assert all(batch.tokens_run <= 60 for batch in batches)


def test_a_record_beyond_the_budget_runs_by_itself(record):
    batches = plan([record("a", range(1, 50), [1]), record("b", [3], [4]), record("c", [5], [6])], 16).batches
    assert [batch.inputs.shape for batch in batches] == [(2, 8), (1, 56)]


def test_long_and_short_completions_are_not_padded_to_each_other(record):
    short = [record(f"s{i}", [1, 2, 3], [i] * 8) for i in range(8)]
    batches = plan([*short, record("long", [1, 2, 3], [9] * 400)]).batches
    assert [batch.inputs.shape for batch in batches] == [(8, 8), (1, 400)]


def test_what_has_no_gradient_is_skipped_and_not_counted(record):
    step = plan(
        [
            record("a", [1], [2, 3], advantage=0.0),
            record("b", [1], [2, 3], mask=[False, False]),
            record("c", [1], [2, 3]),
        ]
    )
    assert (step.records, step.skipped, step.tokens_trained) == (1, 2, 2)


def test_an_empty_step_has_no_batches():
    assert plan([]) == StepPlan((), 0, 0)


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


PROMPTS = st.sampled_from([(1, 2, 3), (4,), (5,) * 30]) | st.lists(st.integers(0, 9), min_size=1).map(tuple)
RECORDS = st.lists(
    st.tuples(
        PROMPTS,
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40),
        st.sampled_from([0.0, 0.5, -2.0]),
        st.sampled_from([0.5, 1.0]),
    ),
    max_size=12,
)


@given(drawn=RECORDS, budget=st.integers(1, 300), shuffle=st.integers(0, 99))
def test_every_record_is_trained_once_whatever_the_budget_and_the_order(record, drawn, budget, shuffle):
    records = [
        record(
            f"r{index}",
            prompt,
            completion,
            advantage=advantage,
            logprobs=[-float(i + 1) for i in range(len(completion))],
            temperature=temperature,
        )
        for index, (prompt, completion, advantage, temperature) in enumerate(drawn)
    ]
    step = plan(records, budget)
    rows = [row for batch in step.batches for row in trained(batch)]
    expected = [(r.input_ids, r.logprobs, r.advantage, r.temperature) for r in records if r.advantage != 0]
    assert sorted(rows) == sorted(expected)
    for batch in step.batches:
        assert batch.tokens_run <= budget or len(batch.inputs) == 1
        assert batch.inputs.shape[1] % LENGTH_BUCKET == 0
    shuffled = random.Random(shuffle).sample(records, len(records))
    again = [trained(batch) for batch in plan(shuffled, budget).batches]
    assert again == [trained(batch) for batch in step.batches]
