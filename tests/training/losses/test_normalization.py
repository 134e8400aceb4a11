"""What a token weighs in its step: by hand, and what each normalization promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_ray.training.losses import token_weights
from selfplay_ray.training.losses.normalization import trained_tokens
from selfplay_ray.types import PolicySpan, TrainingRecord


def make(id: str, mask: list[bool], role: str = "Solver") -> TrainingRecord:
    tokens = len(mask)
    return TrainingRecord(
        id=id,
        role_id=role,
        rollout_id=id,
        episode_type="solve",
        prompt_token_ids=(1,),
        completion_token_ids=(2,) * tokens,
        logprobs=(-1.0,) * tokens,
        action_mask=tuple(mask),
        spans=(PolicySpan(0, tokens, 0),),
        temperature=1.0,
        reward=0.0,
        advantage=1.0,
    )


A, B = make("a", [True] * 3), make("b", [True, False])
PROPOSAL = make("p", [True] * 4, role="Proposer")


@pytest.mark.parametrize(
    ("normalization", "a", "b"),
    [
        ("token", 1 / 4, 1 / 4),  # 3 + 1 trained tokens
        ("sequence", 1 / 6, 1 / 2),  # 1/(2·3), 1/(2·1)
        ("constant", 1 / 20, 1 / 20),  # 2 records of at most 10 tokens
    ],
)
def test_by_hand(normalization, a, b):
    assert token_weights([A, B], normalization, max_tokens=10) == {"a": a, "b": b}


def test_a_record_without_a_trained_token_counts_nowhere():
    silent = make("s", [False, False])
    for normalization in ("token", "sequence", "constant"):
        weights = token_weights([A, B, silent], normalization, max_tokens=10)
        weights.pop("s")
        assert weights == token_weights([A, B], normalization, max_tokens=10)
    assert token_weights([], "token", max_tokens=10) == {}


def test_roles_are_objectives_of_their_own():
    # Solvers: mean over 4 tokens, weight 1 by default; proposer: mean over its 4, times 0.5. One mean would be 1/8.
    records = [A, PROPOSAL, B]
    assert token_weights(records, "token", max_tokens=10, role_weights={"Proposer": 0.5}) == {
        "a": 1 / 4,
        "b": 1 / 4,
        "p": 0.5 / 4,
    }
    assert token_weights(records, "token", max_tokens=10) == dict.fromkeys("abp", 1 / 8)
    silenced = token_weights(records, "sequence", max_tokens=10, role_weights={"Proposer": 0.0})
    assert silenced == {"a": 1 / 6, "b": 1 / 2, "p": 0}


masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=6)


@settings(max_examples=50)
@given(masks)
def test_what_each_normalization_promises(masks):
    records = [make(str(index), mask) for index, mask in enumerate(masks)]
    trained = [record for record in records if trained_tokens(record)]

    def mass(record: TrainingRecord, weights: dict[str, float]) -> float:
        return weights[record.id] * trained_tokens(record)

    by_token = token_weights(records, "token", max_tokens=9)
    by_sequence = token_weights(records, "sequence", max_tokens=9)
    if trained:
        assert sum(mass(record, by_token) for record in records) == pytest.approx(1)
    assert len({by_token[record.id] for record in trained}) <= 1  # every token alike
    for record in trained:
        assert mass(record, by_sequence) == pytest.approx(1 / len(trained))  # every record alike


@settings(max_examples=50)
@given(masks, st.integers(1, 5))
def test_with_the_constant_lengths_bear_on_nothing(masks, longer):
    records = [make(str(index), [*mask, True]) for index, mask in enumerate(masks)]
    lengthened = [replace(make(r.id, [*r.action_mask, *[True] * longer])) for r in records]
    assert token_weights(records, "constant", max_tokens=9) == token_weights(
        lengthened, "constant", max_tokens=9
    )
