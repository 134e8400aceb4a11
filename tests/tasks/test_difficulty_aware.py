"""Weights that follow how near a miss each problem was, by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from selfplay_ray.artifacts import Artifact
from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.difficulty_aware import (
    LEAST_WEIGHT,
    DifficultyAwareArena,
    answer_of,
    grade,
    learnability,
    problems,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout


@pytest.mark.parametrize(
    ("reply", "answer", "worth"),
    [
        ("20", 20, 1.0),
        ("It is 20.", 20, 1.0),
        ("18", 20, 0.45),  # off by a tenth: 0.5 × 0.9
        ("25", 20, 0.375),
        ("40", 20, 0.0),
        ("1000", 20, 0.0),
        ("-20", 20, 0.0),
        ("-4", -5, 0.4),
        ("1", 0, 0.0),
        ("twenty", 20, 0.0),
        ("", 20, 0.0),
    ],
)
def test_an_answer_is_worth_how_near_it_is(reply: str, answer: int, worth: float):
    assert grade(reply, answer) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("mean", "weight"), [(0.5, 1.0), (0.25, 0.75), (0.9, 0.36), (0.0, LEAST_WEIGHT), (1.0, LEAST_WEIGHT)]
)
def test_what_half_get_is_learned_most_from(mean: float, weight: float):
    assert learnability(mean) == pytest.approx(weight)


def test_the_problems_are_always_the_same_and_their_answers_computed():
    pool = problems(40)
    assert pool == problems(40)
    assert len(set(pool)) == 200
    assert [answer_of(problem) for problem in ("12 + 30", "3 - 8", "7 * 6")] == [42, -5, 42]


def attempted(problem: str, *rewards: float) -> list[GenerateResult]:
    return [
        GenerateResult(Rollout(f"b0.{i}", "solve", problem, rewards={"Solver": reward}))
        for i, reward in enumerate(rewards)
    ]


def test_a_weight_moves_half_way_and_the_grade_is_kept():
    """Grades 1, 0.45, 0.45, 0.1: mean 0.5, learnability 1: the weight stays 1. All right: 0.02, so half way 0.51;
    again: 0.265."""
    arena = DifficultyAwareArena(8)
    problem = problems(40)[0]
    store = arena.stores["problems"]
    arena.score_group(attempted(problem, 1, 0.45, 0.45, 0.1))
    assert (store.get(problem).weight, store.get(problem).data) == (pytest.approx(1.0), pytest.approx(0.5))
    arena.score_group(attempted(problem, 1, 1))
    assert store.get(problem).weight == pytest.approx(0.51)
    arena.score_group(attempted(problem, 1, 1))
    assert (store.get(problem).weight, store.get(problem).data) == (pytest.approx(0.265), 1.0)
    assert len(store) == 200
    assert {a.weight for a in store if a.id != problem} == {1.0}


def test_it_never_moves_where_it_may_not():
    arena = DifficultyAwareArena(8, adapt=0)
    arena.score_group(attempted(problems(40)[0], 1, 1))
    assert {artifact.weight for artifact in arena.stores["problems"]} == {1.0}


def test_difficulty_is_reported_and_rewards_are_left_alone():
    """First 1 and 0.5 (mean 0.75), then another problem with 0.25: the known ones' mean grade is 0.5."""
    arena = DifficultyAwareArena(8)
    one, other = problems(40)[:2]
    arena.score_group(attempted(one, 1, 0.5))
    results = attempted(other, 0.25)
    arena.score_group(results)
    assert results[0].rewards == {"Solver": 0.25}
    assert results[0].rollout.metrics == {
        "solved/Solver": 0.0,
        "difficulty/asked": 0.75,
        "difficulty/known": 0.5,
        "difficulty/problems_tried": 2 / 200,
    }


def test_a_group_that_failed_weighs_nothing():
    arena = DifficultyAwareArena(8)
    arena.score_group([GenerateResult(Rollout("b0.0", "solve", problems(40)[0], error="ValueError: …"))])
    assert {artifact.weight for artifact in arena.stores["problems"]} == {1.0}


def test_what_is_learned_from_is_drawn_more_often():
    """One problem of weight 1 among 199 of 0.02: a share of 1 / 4.98."""
    arena = DifficultyAwareArena(80, 8, adapt=1)
    arena.configure(RunConfig(batch_size=80))
    wanted, *others = problems(40)
    for problem in others:
        arena.score_group(attempted(problem, 1, 1))
    drawn = Counter(r.artifact for _ in range(100) for r in arena.next_batch()[::8])
    assert drawn.total() == 1000
    assert drawn[wanted] / 1000 == pytest.approx(1 / 4.98, abs=0.04)


async def test_attempts_at_a_problem_are_a_group_and_compared():
    """Off by a tenth and right: 0.45 and 1; mean 0.725, deviation 0.275."""
    says = iter(["18", "20"])
    arena = DifficultyAwareArena(2, 2, client=MockInferenceClient(lambda messages: next(says)))
    arena.get_batch = lambda: [EpisodeRequest("solve", "12 + 8", group="0")] * 2  # type: ignore[method-assign]
    arena.stores["problems"].add(Artifact("12 + 8", None))
    step = await arena.step()
    advantages = [result.rollout.advantages["Solver"] for result in step.results]
    assert advantages == pytest.approx([-0.275 / 0.2751, 0.275 / 0.2751])
    assert arena.stores["problems"].get("12 + 8").data == pytest.approx(0.725)


def test_a_batch_comes_from_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = DifficultyAwareArena(16, 8)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, r.artifact) for r in first[a : a + 8]}) for a in (0, 8)] == [1, 1]
