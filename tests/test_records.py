"""From credited trees to records: what may be trained on, token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.credit import ConstantCredit, GRPOCredit, RAECredit
from selfplay_ray.errors import InferenceError, TrainingError
from selfplay_ray.records import credit_group, record_of, reward_stats, trainable_results
from selfplay_ray.types import (
    Completion,
    GenerateResult,
    PolicySpan,
    RoleStats,
    Rollout,
    Step,
    TrainingRecord,
)


def step(role: str, index: int, trainable: bool = True, extended: bool = True) -> Step:
    response = Completion(
        text=f"{role}{index}",
        prompt_token_ids=(1, 2),
        completion_token_ids=(10 + index, 11, 99),
        completion_logprobs=(-0.5, -1.5, -2.5),
        spans=(PolicySpan(0, 1, 4), PolicySpan(1, 3, 5)),
        finish_reason="stop",
        extended=extended,
    )
    return Step(role, index, [], response, temperature=0.7, trainable=trainable)


def result(name, rewards, *children, trainable=True, error=None, steps=None, metrics=None) -> GenerateResult:
    spoken = steps if steps is not None else [step(role, i) for i, role in enumerate(rewards)]
    rollout = Rollout(name, "solve", steps=spoken, rewards=rewards, error=error, metrics=metrics or {})
    return GenerateResult(rollout, list(children), trainable)


def test_a_record_holds_the_tokens_exactly_as_they_were_sampled():
    tree = result("r", {"A": 2.0})
    group = credit_group("g", [tree], ConstantCredit(0.5))
    assert group.records == (
        TrainingRecord(
            id="r:0",
            role_id="A",
            rollout_id="r",
            episode_type="solve",
            prompt_token_ids=(1, 2),
            completion_token_ids=(10, 11, 99),  # with the end of turn
            logprobs=(-0.5, -1.5, -2.5),
            action_mask=(True, True, True),
            spans=(PolicySpan(0, 1, 4), PolicySpan(1, 3, 5)),
            temperature=0.7,
            reward=2.0,
            advantage=1.0,
        ),
    )
    assert group.records[0].input_ids == (1, 2, 10, 11, 99)
    assert group.records[0].policy_version == 4  # the oldest


def test_a_group_says_how_its_roles_fared_and_what_went_wrong():
    results = [
        result("a", {"A": 1.0}, result("a/0/0", {"B": 5.0}), metrics={"exact/A": 1.0}),
        result("b", {"A": 0.0}, metrics={"exact/A": 0.0}, steps=[step("A", 0, extended=False)]),
        result("c", {}, error="Traceback", steps=[step("A", 0)]),
        result("e", {"A": 9.0}, trainable=False, metrics={"exact/A": 9.0}),
    ]
    group = credit_group("g", results, GRPOCredit())
    assert (group.id, group.roots) == ("g", 4)
    # A: mean(1, 0) = 0.5, population std 0.5; what failed or was evaluated doesn't count
    assert group.rewards == {"A": RoleStats(2, 0.5, 0.5), "B": RoleStats(1, 5.0, 0.0)}
    assert group.metrics == {
        "rubric/exact/A": 0.5,
        "episodes/finished": 5.0,
        "episodes/failed": 1.0,
        "credit/zero_spread_groups": 1.0,  # B stands alone
        "credit/unscored": 0.0,
        "episodes/broken_prefixes": 1.0,
        "episodes/failed/solve": 1.0,
        "credit/incomplete_groups": 1.0,
    }
    assert [(record.id, record.advantage) for record in group.records] == [
        ("a:0", 0.5),
        ("a/0/0:0", 0.0),
        ("b:0", -0.5),
    ]


def test_evaluation_leaves_no_record_and_moves_nothing():
    tree = result("e", {"A": 1.0}, result("e/0/0", {"B": 1.0}), trainable=False)
    assigner = RAECredit()
    group = credit_group("g", [tree], assigner)
    assert (group.records, group.rewards) == ((), {})
    assert assigner.state_dict() == {"baselines": []}
    assert list(trainable_results(tree)) == []


def test_a_frozen_role_leaves_no_record():
    tree = result("r", {"A": 1.0, "Old": -1.0}, steps=[step("A", 0), step("Old", 1, trainable=False)])
    assert [record.role_id for record in credit_group("g", [tree], ConstantCredit()).records] == ["A"]


def test_what_is_unscored_leaves_no_record_for_any_objective_and_is_counted():
    """Of three, b's A is unscored: the others' mean is (1 + 0) / 2, and b's own child is trained on all the same."""
    results = [
        result("a", {"A": 1.0, "B": -1.0}, metrics={"verdict/A": 1.0}),
        result(
            "b", {"B": 3.0}, result("b/0/0", {"C": 2.0}), steps=[step("A", 0), step("B", 1), step("A", 2)]
        ),
        result("c", {"A": 0.0, "B": 1.0}, metrics={"verdict/A": 0.0}),
    ]
    results[1].rollout.leave_unscored("A")
    group = credit_group("g", results, GRPOCredit())
    assert [(record.id, record.advantage) for record in group.records] == [
        ("a:0", 0.5),
        ("a:1", -2.0),  # B: mean(-1, 3, 1) = 1
        ("b:1", 2.0),
        ("b/0/0:0", 0.0),
        ("c:0", -0.5),
        ("c:1", 0.0),
    ]
    assert (group.rewards["A"], group.rewards["B"].count) == (RoleStats(2, 0.5, 0.5), 3)
    assert group.metrics["credit/unscored"] == 1.0
    assert group.metrics["rubric/verdict/A"] == 0.5
    assert set(results[1].rollout.advantages) == {"B"}


def test_a_group_in_which_everything_failed_is_still_a_group():
    group = credit_group("g", [result("a", {}, error="x"), result("b", {}, error="x")], GRPOCredit())
    assert (group.roots, group.records) == (2, ())
    assert group.metrics["episodes/failed"] == 2.0


def test_reward_stats_by_hand():
    # mean(1, 2, 6) = 3; variance (4 + 1 + 9) / 3 = 14 / 3
    stats = reward_stats([Rollout(str(r), "x", rewards={"A": r}) for r in (1.0, 2.0, 6.0)])
    assert stats["A"].std == pytest.approx((14 / 3) ** 0.5)
    assert (stats["A"].count, stats["A"].mean) == (3, 3.0)


@st.composite
def trees(draw: st.DrawFn, name: str = "t", depth: int = 0) -> GenerateResult:
    children = [
        draw(trees(f"{name}/0/{i}", depth + 1)) for i in range(draw(st.integers(0, 2 if depth < 2 else 0)))
    ]
    failed = draw(st.booleans())
    steps = [step("A", i, trainable=draw(st.booleans())) for i in range(draw(st.integers(0, 2)))]
    tree = result(
        name,
        {} if failed else {"A": draw(st.floats(-1, 1))},
        *children,
        trainable=draw(st.booleans()),
        error="x" if failed else None,
        steps=steps,
    )
    if draw(st.booleans()):
        tree.rollout.leave_unscored("A")
    return tree


def allowed(tree: GenerateResult) -> set[str]:
    """By recursion, as the rules say it: trainable from the root down, not itself failed, and scored."""
    if not tree.is_trainable:
        return set()
    lost = tree.rollout.error or tree.rollout.unscored
    own = {f"{tree.rollout.id}:{s.index}" for s in tree.rollout.steps if s.trainable and not lost}
    return own.union(*(allowed(child) for child in tree.children))


@given(st.lists(trees(), max_size=3))
def test_exactly_what_may_be_trained_on_becomes_a_record(forest):
    for index, tree in enumerate(forest):
        for rollout in tree.all_rollouts():
            rollout.id = f"{index}:{rollout.id}"
    records = credit_group("g", forest, GRPOCredit()).records
    assert len({record.id for record in records}) == len(records)
    assert {record.id for record in records} == set().union(*map(allowed, forest))


def sampled(prompt: tuple[int, ...], tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Completion:
    return Completion("a", prompt, tokens, logprobs, (PolicySpan(0, 1, 0),), "stop")


def test_what_training_needs_and_is_missing_raises():
    with pytest.raises(InferenceError, match="2 tokens came with 1 logprobs"):
        sampled((1,), (2, 3), (-1.0,))
    with pytest.raises(InferenceError, match="2 tokens has policy versions for 1 of them"):
        sampled((1,), (2, 3), (-1.0, -1.0))
    with pytest.raises(InferenceError, match="a completion of 0 tokens"):
        sampled((1,), (), ())
    with pytest.raises(TrainingError, match="record r:0 has an empty prompt"):
        record_of(Rollout("r", "x"), Step("A", 0, [], sampled((), (2,), (-1.0,)), 1.0))
