"""Credit: every formula with its arithmetic by hand, and who is compared with whom."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.credit import (
    ConstantCredit,
    CreditAssigner,
    EpisodicRewardCredit,
    GRPOCredit,
    RAECredit,
    RLOOCredit,
    apply_credit,
)
from selfplay_ray.errors import CreditError
from selfplay_ray.types import Completion, GenerateResult, PolicySpan, Rollout, Step


def step(role: str, index: int = 0) -> Step:
    response = Completion("a", (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    return Step(role, index, [], response, temperature=1.0)


def result(
    name: str,
    rewards: dict[str, float],
    *children: GenerateResult,
    kind: str = "solve",
    group: str | None = None,
    trainable: bool = True,
    error: str | None = None,
    steps: Sequence[str] | None = None,
) -> GenerateResult:
    """A rollout in which each role of ``rewards`` (or each of ``steps``) spoke, in that order."""
    spoken = [step(role, index) for index, role in enumerate(rewards if steps is None else steps)]
    rollout = Rollout(name, kind, steps=spoken, rewards=rewards, error=error)
    return GenerateResult(rollout, list(children), trainable, group)


def solvers(*rewards: float, prefix: str = "r") -> list[GenerateResult]:
    return [result(f"{prefix}{i}", {"Solver": reward}) for i, reward in enumerate(rewards)]


def advantages(assigner: CreditAssigner, *rewards: float) -> list[float]:
    """The advantages of single-step rollouts with these rewards, in one group."""
    weights = assigner.compute(solvers(*rewards))
    return [weights[f"r{i}", 0] for i in range(len(rewards))]


# The formulas


def test_grpo_subtracts_the_mean_of_the_group():
    # mean(1, 0, 0.5, 0.5) = 0.5
    assert advantages(GRPOCredit(), 1.0, 0.0, 0.5, 0.5) == [0.5, -0.5, 0.0, 0.0]


def test_grpo_normalized_divides_by_the_population_std_plus_epsilon():
    # mean(3, 1, 1, 3) = 2; variance (1 + 1 + 1 + 1) / 4 = 1 (not / 3); 1 / (1 + 1e-4) = 0.99990000999900010
    expected = 1 / 1.0001
    assert advantages(GRPOCredit(normalize=True), 3.0, 1.0, 1.0, 3.0) == pytest.approx(
        [expected, -expected, -expected, expected], abs=1e-12
    )


def test_grpo_epsilon_is_outside_the_root():
    # mean(0, 2e-4) = 1e-4, std 1e-4: 1e-4 / (1e-4 + 1e-4) = 0.5
    assert advantages(GRPOCredit(normalize=True), 0.0, 2e-4) == pytest.approx([-0.5, 0.5], abs=1e-12)


def test_grpo_positive_only_cuts_the_negative_half_after_centring():
    # mean(1, 0, 0.5) = 0.5: 0.5, -0.5 -> 0, 0
    assert advantages(GRPOCredit(positive_only=True), 1.0, 0.0, 0.5) == [0.5, 0.0, 0.0]


def test_rloo_subtracts_the_mean_of_the_others():
    # 1 - (0 + 0.5) / 2 = 0.75;  0 - (1 + 0.5) / 2 = -0.75;  0.5 - (1 + 0) / 2 = 0
    assert advantages(RLOOCredit(), 1.0, 0.0, 0.5) == pytest.approx([0.75, -0.75, 0.0], abs=1e-12)


def test_constant_is_the_reward_times_its_value():
    assert advantages(ConstantCredit(2.0), 1.0, -0.5) == [2.0, -1.0]
    assert advantages(EpisodicRewardCredit(), 1.0, -0.5) == [1.0, -0.5]


def test_rae_uses_its_baseline_before_it_updates_it():
    assigner = RAECredit(decay=0.95)
    # Nothing was seen: b = 0, A = R.
    assert advantages(assigner, 1.0) == [1.0]
    # raw = 0.95 * 0 + 0.05 * 1 = 0.05, weight = 1 - 0.95 = 0.05, b = 0.05 / 0.05 = 1.
    assert assigner.baseline("solve", "Solver") == pytest.approx(1.0)
    # A = 0 - 1 = -1, and only then raw = 0.95 * 0.05 + 0.05 * 0 = 0.0475, weight = 1 - 0.95^2 = 0.0975.
    assert advantages(assigner, 0.0) == pytest.approx([-1.0])
    assert assigner.baseline("solve", "Solver") == pytest.approx(0.0475 / 0.0975)  # 0.48717...


def test_rae_decays_once_per_rollout_not_once_per_batch():
    assigner = RAECredit(decay=0.5)
    assigner.compute(solvers(1.0))  # raw 0.5, weight 0.5
    assigner.compute(solvers(0.0, 0.0))
    # two rollouts of reward 0: kept 0.5^2 = 0.25: raw 0.125, weight 0.25 * 0.5 + 0.75 = 0.875
    assert assigner.baseline("solve", "Solver") == pytest.approx(0.125 / 0.875)


def test_rae_baseline_of_equal_rewards_is_what_one_by_one_would_give():
    together, one_by_one = RAECredit(decay=0.9), RAECredit(decay=0.9)
    together.compute(solvers(1.0))
    one_by_one.compute(solvers(1.0))
    together.compute(solvers(0.25, 0.25, 0.25))
    for _ in range(3):
        one_by_one.compute(solvers(0.25))
    assert together.baseline("solve", "Solver") == pytest.approx(one_by_one.baseline("solve", "Solver"))


def test_rae_keeps_a_baseline_per_episode_type_and_role():
    assigner = RAECredit()
    assigner.compute(
        [
            result("a", {"White": 1.0, "Black": -1.0}, kind="chess"),
            result("b", {"White": 0.5}, kind="go"),
        ]
    )
    assert assigner.baseline("chess", "White") == pytest.approx(1.0)
    assert assigner.baseline("chess", "Black") == pytest.approx(-1.0)
    assert assigner.baseline("go", "White") == pytest.approx(0.5)
    assert assigner.baseline("go", "Black") == 0.0


@given(st.data(), st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.integers(1, 7))
def test_rae_does_not_depend_on_the_order_within_one_compute(data, rewards, cut):
    """Neither the order of rollouts nor how they are dealt out to parents moves a baseline or an advantage."""

    def forest(order: Sequence[int], split: int) -> list[GenerateResult]:
        leaves = [result(f"leaf{i}", {"Solver": rewards[i]}) for i in order]
        return [
            result("p0", {"Proposer": 1.0}, *leaves[:split], kind="propose"),
            result("p1", {"Proposer": 0.0}, *leaves[split:], kind="propose"),
        ]

    shuffled = data.draw(st.permutations(range(len(rewards))))
    one, other = RAECredit(), RAECredit()
    one.compute(solvers(0.3))
    other.compute(solvers(0.3))
    first = one.compute(forest(range(len(rewards)), 1))
    second = other.compute(list(reversed(forest(shuffled, cut))))
    assert first == pytest.approx(second)
    assert one.baseline("solve", "Solver") == pytest.approx(other.baseline("solve", "Solver"), abs=1e-9)


def test_rae_state_survives_json():
    assigner, restored = RAECredit(), RAECredit()
    assigner.compute(solvers(1.0, 0.25))
    restored.load_state_dict(json.loads(json.dumps(assigner.state_dict())))
    assert restored.baseline("solve", "Solver") == assigner.baseline("solve", "Solver")
    assert advantages(restored, 0.5) == advantages(assigner, 0.5)


# Unscored roles


def abstained(name: str, role: str = "Solver") -> GenerateResult:
    """A rollout of which nobody could tell what ``role`` was worth."""
    tree = result(name, {}, steps=[role])
    tree.rollout.leave_unscored(role)
    return tree


def test_the_mean_of_a_group_is_that_of_the_others():
    # mean(1, 0) = 0.5; a third with the worst grade, 0, would have made it 1/3
    weights = GRPOCredit().compute([*solvers(1.0, 0.0), abstained("x")])
    assert weights == {("r0", 0): 0.5, ("r1", 0): -0.5}
    weights = RLOOCredit().compute([*solvers(1.0, 0.0), abstained("x")])
    assert weights == {("r0", 0): 1.0, ("r1", 0): -1.0}


def test_who_is_left_alone_has_zero_as_in_a_group_of_one():
    assigner = GRPOCredit(normalize=True)
    assert assigner.compute([*solvers(1.0), abstained("x"), abstained("y")]) == {("r0", 0): 0.0}
    assert assigner.zero_spread == 1
    assert assigner.compute([abstained("x")]) == {}
    assert assigner.zero_spread == 0


def test_an_abstention_after_five_wins_moves_no_baseline():
    assigner = RAECredit()
    for _ in range(5):
        assigner.compute(solvers(1.0))  # b = 1: a verdict of 0 would have an advantage of -1
    before = assigner.state_dict()
    assert assigner.compute([abstained("x")]) == {}
    assert assigner.state_dict() == before
    assert advantages(assigner, 1.0) == pytest.approx([0.0])


def test_one_role_of_a_rollout_may_be_unscored_and_another_not():
    tree = result("a", {"Critic": 2.0}, steps=["Solver", "Critic"])
    tree.rollout.leave_unscored("Solver")
    weights = ConstantCredit().compute([tree])
    apply_credit([tree], weights)
    assert weights == {("a", 1): 2.0}
    assert tree.rollout.advantages == {"Critic": 2.0}


def test_who_has_no_reward_and_is_not_unscored_is_still_an_error():
    with pytest.raises(CreditError, match="rollout a has no reward for role 'Solver'"):
        GRPOCredit().compute([result("a", {}, steps=["Solver"])])


def test_a_reward_for_an_unscored_role_is_refused():
    tree = abstained("a")
    tree.rewards["Solver"] = 1.0
    with pytest.raises(
        CreditError, match="rollout a has a reward for role 'Solver', which it says is unscored"
    ):
        GRPOCredit().compute([tree])


# Groups without information


@pytest.mark.parametrize(
    "assigner", [GRPOCredit(), GRPOCredit(normalize=True), GRPOCredit(positive_only=True), RLOOCredit()]
)
@pytest.mark.parametrize("rewards", [(0.7,), (0.1, 0.1, 0.1), (1e17 + 1.0,) * 7])
def test_a_group_of_one_or_without_spread_is_exactly_zero_and_counted(assigner, rewards):
    # 0.1 + 0.1 + 0.1 != 0.3 in floats: the difference to a computed mean would not be exactly 0
    assert advantages(assigner, *rewards) == [0.0] * len(rewards)
    assert assigner.zero_spread == 1


def test_zero_spread_counts_groups_of_the_last_compute_only():
    assigner = GRPOCredit()
    assigner.compute([result("a", {"X": 1.0, "Y": 0.0}), result("b", {"X": 1.0, "Y": 0.0})])
    assert assigner.zero_spread == 2  # both roles
    assigner.compute(solvers(0.0, 1.0))
    assert assigner.zero_spread == 0


def test_nothing_to_credit_is_no_error():
    assert GRPOCredit().compute([]) == {}


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8))
def test_grpo_and_rloo_advantages_sum_to_zero(rewards):
    assert sum(advantages(GRPOCredit(), *rewards)) == pytest.approx(0.0, abs=1e-9)
    assert sum(advantages(RLOOCredit(), *rewards)) == pytest.approx(0.0, abs=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_rloo_is_grpo_times_g_over_g_minus_one(rewards):
    factor = len(rewards) / (len(rewards) - 1)
    assert advantages(RLOOCredit(), *rewards) == pytest.approx(
        [factor * advantage for advantage in advantages(GRPOCredit(), *rewards)], abs=1e-9
    )


# Who is compared with whom


def test_siblings_under_one_parent_are_compared_and_nobody_else():
    results = [
        result("p0", {"Proposer": 1.0}, *solvers(1.0, 0.0, prefix="p0/0/"), kind="propose"),
        result("p1", {"Proposer": 0.0}, *solvers(0.0, 0.0, 3.0, prefix="p1/0/"), kind="propose"),
    ]
    assert GRPOCredit().compute(results) == {
        ("p0", 0): 0.5,  # Proposers: mean 0.5
        ("p1", 0): -0.5,
        ("p0/0/0", 0): 0.5,  # the first's Solvers: mean 0.5
        ("p0/0/1", 0): -0.5,
        ("p1/0/0", 0): -1.0,  # the second's: mean 1
        ("p1/0/1", 0): -1.0,
        ("p1/0/2", 0): 2.0,
    }


def test_siblings_of_another_type_or_role_are_not_compared():
    parent = result(
        "p",
        {},
        result("a", {"Solver": 1.0}, kind="easy"),
        result("b", {"Solver": 0.0}, kind="hard"),
        result("c", {"Solver": 0.5, "Critic": 9.0}, kind="easy"),
    )
    # easy: mean(1, 0.5) = 0.75; hard and Critic stand alone
    assert GRPOCredit().compute([parent]) == {("a", 0): 0.25, ("b", 0): 0.0, ("c", 0): -0.25, ("c", 1): 0.0}


def test_named_groups_are_compared_within_themselves():
    results = [
        result("a", {"Solver": 1.0}, group="x"),
        result("b", {"Solver": 0.0}, group="y"),
        result("c", {"Solver": 0.0}, group="x"),
        result("d", {"Solver": 4.0}),
        result("e", {"Solver": 2.0}, group="y"),
    ]
    # x: mean(1, 0) = 0.5; y: mean(0, 2) = 1; d is alone among the unnamed
    assert GRPOCredit().compute(results) == {
        ("a", 0): 0.5,
        ("c", 0): -0.5,
        ("b", 0): -1.0,
        ("e", 0): 1.0,
        ("d", 0): 0.0,
    }


def test_the_same_group_name_under_two_parents_is_two_groups():
    results = [
        result("p", {}, result("a", {"S": 1.0}, group="g"), result("b", {"S": 0.0}, group="g")),
        result("q", {}, result("c", {"S": 5.0}, group="g"), result("d", {"S": 3.0}, group="g")),
    ]
    assert GRPOCredit().compute(results) == {("a", 0): 0.5, ("b", 0): -0.5, ("c", 0): 1.0, ("d", 0): -1.0}


def test_a_named_group_that_mixes_types_is_refused_also_below():
    mixed = [result("a", {"S": 1.0}, kind="easy", group="g"), result("b", {"S": 0.0}, kind="hard", group="g")]
    with pytest.raises(CreditError, match=r"'g' mixes episode types \['easy', 'hard'\]"):
        GRPOCredit().compute(mixed)
    with pytest.raises(CreditError, match="'g' mixes"):
        GRPOCredit().compute([result("p", {"P": 1.0}, *mixed)])


def test_a_refused_compute_moves_no_baseline():
    assigner = RAECredit()
    mixed = [result("a", {"S": 1.0}, kind="easy", group="g"), result("b", {"S": 0.0}, kind="hard", group="g")]
    with pytest.raises(CreditError):
        assigner.compute(mixed)
    assert assigner.state_dict() == {"baselines": []}


def test_a_role_that_spoke_and_has_no_reward_is_an_error_that_names_it():
    with pytest.raises(CreditError, match="rollout b has no reward for role 'Solver'"):
        GRPOCredit().compute([result("a", {"Solver": 1.0}), result("b", {}, steps=["Solver"])])


def test_a_rewarded_role_that_never_spoke_is_in_no_group():
    results = [result("a", {"X": 1.0, "Y": 100.0}, steps=["X"]), result("b", {"X": 0.0, "Y": 0.0})]
    assert GRPOCredit().compute(results) == {("a", 0): 0.5, ("b", 0): -0.5, ("b", 1): 0.0}


def test_failed_rollouts_are_left_out_but_their_children_are_not():
    results = [
        result("ok", {"Solver": 1.0}),
        result("bad", {"Solver": -100.0}, *solvers(1.0, 0.0, prefix="bad/0/"), error="Traceback"),
        result("fine", {"Solver": 0.0}),
    ]
    assert GRPOCredit().compute(results) == {
        ("ok", 0): 0.5,
        ("fine", 0): -0.5,
        ("bad/0/0", 0): 0.5,
        ("bad/0/1", 0): -0.5,
    }


def test_every_step_of_a_role_has_the_advantage_of_its_rollout():
    results = [
        result("a", {"X": 1.0, "Y": -1.0}, steps=["X", "Y", "X"]),
        result("b", {"X": 0.0, "Y": 0.0}, steps=["Y", "X"]),
    ]
    # a group has one reward a rollout, however often the role spoke: mean X = 0.5, not (1 + 1 + 0) / 3
    assert GRPOCredit().compute(results) == {
        ("a", 0): 0.5,
        ("a", 1): -0.5,
        ("a", 2): 0.5,
        ("b", 0): 0.5,
        ("b", 1): -0.5,
    }


def test_evaluation_moves_no_baseline_and_earns_no_advantage_nor_does_anything_below_it():
    assigner = RAECredit()
    below = result("e/0/0", {"Solver": 5.0})  # says of itself that it is trainable
    evaluation = result("e", {"Proposer": 3.0}, below, kind="propose", trainable=False)
    assert assigner.compute([evaluation]) == {}
    assert assigner.state_dict() == {"baselines": []}


def test_a_frozen_role_is_compared_with_nobody_and_moves_no_baseline():
    assigner = RAECredit()
    game = result("g", {"A": 1.0, "Old": -1.0})
    game.rollout.steps[1].trainable = False
    assert assigner.compute([game]) == {("g", 0): 1.0}
    assert [key[1] for key in assigner.state_dict()["baselines"]] == ["A"]


def test_apply_credit_writes_rewards_and_advantages_into_every_step():
    tree = result("p", {"P": 2.0}, *solvers(1.0, 0.0), kind="propose")
    skipped = result("e", {"P": 7.0}, kind="propose", trainable=False)
    apply_credit([tree, skipped], GRPOCredit().compute([tree, skipped]))
    written = {
        r.id: (r.steps[0].reward, r.steps[0].advantage) for t in (tree, skipped) for r in t.all_rollouts()
    }
    assert written == {"p": (2.0, 0.0), "r0": (1.0, 0.5), "r1": (0.0, -0.5), "e": (7.0, 0.0)}
    assert tree.children[0].rollout.advantages == {"Solver": 0.5}


@st.composite
def trees(draw: st.DrawFn, name: str = "t", depth: int = 0) -> GenerateResult:
    rewards = {role: draw(st.floats(-5, 5)) for role in draw(st.sets(st.sampled_from("XY"), min_size=1))}
    width = draw(st.integers(0, 3)) if depth < 2 else 0
    children = [draw(trees(f"{name}/0/{i}", depth + 1)) for i in range(width)]
    return result(name, rewards, *children, kind=draw(st.sampled_from(["k", "l"])))


def parents_of(forest: Sequence[GenerateResult]) -> dict[str, str]:
    """{rollout id: its parent's id, "" for roots}."""
    links = {tree.rollout.id: "" for tree in forest}
    for tree in forest:
        for one in tree.all_results():
            links.update({child.rollout.id: one.rollout.id for child in one.children})
    return links


@given(st.data())
@pytest.mark.parametrize("assigner", [GRPOCredit(), GRPOCredit(normalize=True), RLOOCredit()])
def test_a_changed_reward_moves_its_siblings_and_nobody_else(assigner, data):
    forest = [data.draw(trees(f"t{i}")) for i in range(data.draw(st.integers(1, 3)))]
    rollouts = [rollout for tree in forest for rollout in tree.all_rollouts()]
    before = assigner.compute(forest)
    changed = data.draw(st.sampled_from(rollouts))
    changed.rewards = {role: data.draw(st.floats(-5, 5)) for role in changed.rewards}
    after = assigner.compute(forest)

    parent, kind = parents_of(forest), {rollout.id: rollout.episode_type for rollout in rollouts}
    moved = {
        rollout_id for rollout_id, index in before if before[rollout_id, index] != after[rollout_id, index]
    }
    assert all(parent[one] == parent[changed.id] and kind[one] == changed.episode_type for one in moved)
