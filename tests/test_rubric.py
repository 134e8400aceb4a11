"""Rubrics: weighted sums per role, and what is refused as a reward."""

from __future__ import annotations

import asyncio
import functools
import math

import numpy as np
import pytest

from selfplay_ray import Arena, EpisodeRequest, MockInferenceClient, Role, Rollout, Rubric, SingleTurnEpisode
from selfplay_ray.errors import RubricError


def arena_of(*roles: str) -> Arena:
    arena = Arena(MockInferenceClient(lambda messages: "yes"))
    for role in roles:
        arena.add_role(Role(role))
    return arena


class Ask(SingleTurnEpisode):
    """Role "A" answers "?"."""

    def __init__(self, rubric: Rubric) -> None:
        self.rubric = rubric

    def get_initial_role(self, artifact, state):
        return "A"

    def get_initial_prompt(self, arena, artifact, state):
        return "?"


async def played(rubric: Rubric, *roles: str) -> Rollout:
    arena = arena_of("A", *roles)
    arena.add_episode("ask", Ask(rubric))
    return (await arena.run_episode("ask", "x")).rollout


def half(rollout, arena):
    return {"A": 0.5}


async def two_for_both(rollout, arena):
    await asyncio.sleep(0)
    return {"A": 2.0, "B": -2.0}


async def test_weighted_sum_over_sync_and_async_functions():
    rollout = await played(Rubric([half, two_for_both], [2.0, 0.25]), "B")
    # A: 2 * 0.5 + 0.25 * 2 = 1.5; B: 0.25 * -2 = -0.5
    assert rollout.rewards == {"A": 1.5, "B": -0.5}
    assert rollout.metrics == {"half/A": 0.5, "two_for_both/A": 2.0, "two_for_both/B": -2.0}


async def test_weights_are_one_unless_given():
    assert (await played(Rubric([half, half]))).rewards == {"A": 1.0}


async def test_weight_zero_is_a_metric_and_nothing_else():
    rollout = await played(Rubric([half, two_for_both], [1.0, 0.0]), "B")
    assert rollout.rewards == {"A": 0.5}  # B, whom only the metric speaks of, is not rewarded with 0 either
    assert rollout.metrics["two_for_both/B"] == -2.0


async def test_none_leaves_a_role_unscored_whatever_others_say_of_it():
    def abstains(rollout, arena):
        return {"A": None, "B": 0.5}

    for functions in ([half, abstains], [abstains, half]):
        rollout = await played(Rubric(functions), "B")
        assert (rollout.rewards, rollout.unscored) == ({"B": 0.5}, ["A"])
        assert rollout.metrics == {
            "half/A": 0.5,
            "abstains/B": 0.5,
        }  # and no metric of a value that isn't there


async def test_none_of_weight_zero_is_no_metric_and_nothing_else():
    rollout = await played(Rubric([half, lambda rollout, arena: {"A": None}], [1.0, 0.0]))
    assert (rollout.rewards, rollout.unscored) == ({"A": 0.5}, [])
    assert rollout.metrics == {"half/A": 0.5}


async def test_none_for_an_unknown_role_is_refused():
    rollout = await played(Rubric([lambda rollout, arena: {"Nobody": None}]))
    assert "scored unknown role 'Nobody'" in (rollout.error or "")
    assert rollout.unscored == []


async def test_a_role_that_nobody_scored_gets_zero():
    assert (await played(Rubric())).rewards == {"A": 0.0}


async def test_callable_objects_and_partials_can_score():
    class Exact:
        def __call__(self, rollout, arena):
            return {"A": 1}

    rollout = await played(Rubric([Exact(), functools.partial(lambda bonus, r, a: {"A": bonus}, 2.0)]))
    assert rollout.rewards == {"A": 3.0}
    assert "Exact/A" in rollout.metrics


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), True, 1])
async def test_numbers_of_any_library_are_rewards(value):
    rollout = await played(Rubric([lambda rollout, arena: {"A": value}]))
    assert rollout.error is None
    assert rollout.rewards == {"A": float(value)}
    assert type(rollout.rewards["A"]) is float


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ({"Nobody": 1.0}, "scored unknown role 'Nobody'"),
        ({"A": math.nan}, "gave role 'A' nan"),
        ({"A": math.inf}, "gave role 'A' inf"),
        ({"A": "1.0"}, "gave role 'A' '1.0'"),
        (1.0, "returned 1.0; it must return {role: reward}"),
        (None, "returned None"),
        ([("A", 1.0)], "must return {role: reward}"),
    ],
)
async def test_what_is_no_reward_fails_the_rollout_and_says_why(scores, complaint):
    def odd(rollout, arena):
        return scores

    rollout = await played(Rubric([half, odd]))
    assert rollout.rewards == {}
    assert rollout.error is not None
    assert "RubricError: reward function odd" in rollout.error
    assert complaint in rollout.error


async def test_a_weight_zero_function_is_checked_too():
    rollout = await played(Rubric([lambda rollout, arena: {"A": math.nan}], [0.0]))
    assert rollout.error is not None


async def test_a_function_that_raises_fails_the_rollout_which_is_then_not_trained_on():
    def broken(rollout, arena):
        raise KeyError("score")

    arena = arena_of("A")
    arena.add_episode("ask", Ask(Rubric([half, broken])))
    arena.get_batch = lambda: [EpisodeRequest("ask", "x")] * 2  # type: ignore[method-assign]
    step = await arena.step()
    assert all("KeyError: 'score'" in (result.rollout.error or "") for result in step.results)
    assert [result.rewards for result in step.results] == [{}, {}]
    assert step.groups[0].records == ()
    assert step.groups[0].metrics["episodes/failed"] == 2


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_weights_must_be_one_finite_number_a_function(weights):
    with pytest.raises(ValueError, match="weight"):
        Rubric([half, half], weights)


async def test_sums_that_overflow_are_refused():
    rollout = await played(Rubric([lambda rollout, arena: {"A": 1e308}], [100.0]))
    assert rollout.error is not None


async def test_a_rubric_can_score_a_rollout_by_itself():
    rollout = Rollout("r", "ask")
    with pytest.raises(RubricError, match=r"known: \['A'\]"):
        await Rubric([lambda rollout, arena: {"B": 1.0}]).score(rollout, arena_of("A"))
