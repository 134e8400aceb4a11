"""What a training step leaves in numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.runlog.metrics import (
    StepMetrics,
    before_training,
    pooled_metrics,
    pooled_rewards,
    reward_changes,
    step_metrics,
)
from selfplay_ray.types import PolicySpan, RoleStats, RolloutGroup, TrainingRecord


def group(
    rewards: dict[str, RoleStats], metrics: dict[str, float] | None = None, roots: int = 1
) -> RolloutGroup:
    return RolloutGroup("g", roots, (), rewards, metrics or {})


def record(version: int) -> TrainingRecord:
    return TrainingRecord(
        id="r",
        role_id="Solver",
        rollout_id="0",
        episode_type="solve",
        prompt_token_ids=(1,),
        completion_token_ids=(2,),
        logprobs=(-1.0,),
        action_mask=(True,),
        spans=(PolicySpan(0, 1, version),),
        temperature=1.0,
        reward=0.0,
        advantage=0.0,
    )


def metrics(step: int, **means: float) -> StepMetrics:
    return StepMetrics(
        step=step,
        version=step,
        time=0.0,
        rewards={role: RoleStats(1, mean, 0.0) for role, mean in means.items()},
        finished=0,
        failed=0,
        dropped_stale=0,
        staleness_mean=0.0,
        staleness_max=0,
        tokens_per_second=0.0,
        learner_wait_seconds=0.0,
        engine_wait_seconds=0.0,
        values={},
    )


def test_pooling_two_groups_equals_one_group_of_all_their_rewards() -> None:
    # Rewards 0, 1 (n 2, mean 1/2, std 1/2) and 2, 2, 2, 2 (n 4, mean 2, std 0):
    # mean = 9/6 = 1.5; squares 0 + 1 + 4 x 4 = 17, variance = 17/6 - 9/4 = 7/12.
    pooled = pooled_rewards(
        [group({"Solver": RoleStats(2, 0.5, 0.5)}), group({"Solver": RoleStats(4, 2.0, 0.0)})]
    )["Solver"]
    assert pooled.count == 6
    assert pooled.mean == pytest.approx(1.5)
    assert pooled.std == pytest.approx(math.sqrt(7 / 12))


def test_a_role_is_pooled_over_the_groups_it_is_in() -> None:
    pooled = pooled_rewards(
        [group({"Solver": RoleStats(1, 1.0, 0.0)}), group({"Proposer": RoleStats(3, 0.2, 0.1)})]
    )
    assert pooled["Solver"] == RoleStats(1, 1.0, 0.0)
    assert pooled["Proposer"].mean == pytest.approx(0.2)
    assert pooled_rewards([group({"Judge": RoleStats(0, 0.0, 0.0)})]) == {"Judge": RoleStats(0, 0.0, 0.0)}


def test_rubric_metrics_are_averaged_by_roots_and_counts_summed() -> None:
    a = group({}, {"rubric/exact/Solver": 1.0, "credit/zero_spread_groups": 2.0}, roots=1)
    b = group(
        {},
        {"rubric/exact/Solver": 0.0, "credit/zero_spread_groups": 3.0, "rubric/format/Solver": 0.5},
        roots=3,
    )
    assert pooled_metrics([a, b]) == {
        "rubric/exact/Solver": 0.25,  # (1 x 1 + 3 x 0) / 4
        "credit/zero_spread_groups": 5.0,
        "rubric/format/Solver": 0.5,  # only b has it
    }


def test_step_metrics_counts_staleness_from_the_policy_that_was_trained() -> None:
    step = step_metrics(
        step=4,
        version=8,
        time=12.5,
        groups=[
            group({"Solver": RoleStats(2, 0.5, 0.5)}, {"episodes/finished": 9.0, "episodes/failed": 1.0})
        ],
        records=[record(7), record(7), record(5)],  # version 7 was trained: lags 0, 0, 2
        dropped_stale=3,
        train={"loss": -0.5},
        tokens_per_second=210.0,
        learner_wait_seconds=0.4,
        engine_wait_seconds=0.1,
    )
    assert step.flat() == {
        "step": 4,
        "version": 8,
        "time/ended": 12.5,
        "episodes/finished": 9,
        "episodes/failed": 1,
        "staleness/dropped": 3,
        "staleness/mean": pytest.approx(2 / 3),
        "staleness/max": 2,
        "generation/tokens_per_second": 210.0,
        "time/learner_wait": 0.4,
        "time/engine_wait": 0.1,
        "reward/Solver": 0.5,
        "reward_std/Solver": 0.5,
        "reward_count/Solver": 2,
        "train/loss": -0.5,
    }


names = st.text(min_size=1, max_size=5)
numbers = st.floats(-1e6, 1e6)


def test_counts_are_whole_numbers_whatever_reads_the_json() -> None:
    row = {name: float(number) for name, number in before_training(time=1.5).flat().items()}
    read = StepMetrics.from_flat(row)
    assert read == before_training(time=1.5)
    assert (repr(read.step), repr(read.staleness_max), repr(read.time)) == ("0", "0", "1.5")


@given(
    rewards=st.dictionaries(names, st.builds(RoleStats, st.integers(0, 99), numbers, numbers), max_size=3),
    values=st.dictionaries(names.map("train/{}".format), numbers, max_size=3),
    step=st.integers(1, 10**9),
)
def test_flat_and_back_is_the_identity(
    rewards: dict[str, RoleStats], values: dict[str, float], step: int
) -> None:
    original = StepMetrics(
        step=step,
        version=2,
        time=3.5,
        rewards=rewards,
        finished=4,
        failed=5,
        dropped_stale=6,
        staleness_mean=0.5,
        staleness_max=7,
        tokens_per_second=8.5,
        learner_wait_seconds=9.5,
        engine_wait_seconds=10.5,
        values=values,
    )
    assert StepMetrics.from_flat(original.flat()) == original


def test_reward_changes_compare_the_first_five_steps_with_the_last_five() -> None:
    history = [metrics(i + 1, Solver=i / 10, Proposer=1.0) for i in range(12)]
    # Solver: steps 1-5 are 0.0 to 0.4, mean 0.2; steps 8-12 are 0.7 to 1.1, mean 0.9.
    solver, proposer = reward_changes(history)
    assert (solver.role, solver.steps) == ("Solver", 5)
    assert [solver.first, solver.last] == pytest.approx([0.2, 0.9])
    assert solver.difference == pytest.approx(0.7)
    assert (proposer.role, proposer.difference) == ("Proposer", 0.0)


def test_a_short_run_never_has_a_step_on_both_sides() -> None:
    # Five steps 0, 1, 2, 3, 4: the first two, mean 0.5, and the last two, mean 3.5.
    (change,) = reward_changes([metrics(i + 1, Solver=float(i)) for i in range(5)])
    assert (change.steps, change.first, change.last) == (2, 0.5, 3.5)


def test_reward_changes_count_only_the_steps_that_scored_the_role() -> None:
    history = [metrics(1, Solver=0.0), metrics(2), metrics(3, Solver=1.0), metrics(4)]
    (change,) = reward_changes(history)
    assert (change.steps, change.first, change.last) == (1, 0.0, 1.0)
    assert reward_changes([]) == []
