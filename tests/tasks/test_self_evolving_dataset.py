"""A data set that makes itself: what is kept, what that is worth, and what is asked next."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.errors import ConfigError
from selfplay_ray.tasks.self_evolving_dataset import SEEDS, SelfEvolvingDatasetArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message, Rollout


def scripted_arena(problem: str = "30 + 4", answers: Sequence[str] = (), **options: object):
    """One whose Generator always writes ``problem``, and whose Solvers say ``answers`` in turn."""
    says = iter(answers)

    def reply(messages: Sequence[Message]) -> str:
        return next(says) if messages[-1]["content"].startswith("What is") else problem

    return SelfEvolvingDatasetArena(12, 4, n_attempts=4, client=MockInferenceClient(reply), **options)


def kept(arena: SelfEvolvingDatasetArena) -> list[str]:
    return [artifact.data for artifact in arena.stores["problems"]]


def written(*problems: tuple[str | None, float | None]) -> list[GenerateResult]:
    return [
        GenerateResult(Rollout(f"b0.{i}", "generate", extras={"problem": problem, "pass_rate": pass_rate}))
        for i, (problem, pass_rate) in enumerate(problems)
    ]


async def test_attempts_measure_a_problem_and_are_not_trained_on():
    arena = scripted_arena(answers=["34", "It is 34.", "35", "?"])
    result = await arena.run_episode("generate", ["1 + 2", "2 + 5", "3 + 3"])
    assert result.rollout.extras == {"problem": "30 + 4", "pass_rate": 0.5}
    assert [child.rewards["Solver"] for child in result.children] == [1, 1, 0, 0]
    assert not any(child.is_trainable for child in result.children)
    assert not any(step.trainable for child in result.children for step in child.rollout.steps)
    assert [message["content"].split(": ")[-1] for message in result.rollout.steps[0].prompt] == [
        "1 + 2",
        "2 + 5",
        "3 + 3",
    ]


async def test_what_cannot_be_read_is_not_attempted():
    result = await scripted_arena("a hard one").run_episode("generate", ["1 + 2", "2 + 5", "3 + 3"])
    assert result.rollout.extras == {"problem": None, "pass_rate": None}
    assert (result.children, result.rollout.error) == ([], None)


@pytest.mark.parametrize(
    ("pass_rate", "survives"),
    [(0.0, False), (0.125, False), (0.2, True), (0.5, True), (0.8, True), (0.875, False), (1.0, False)],
)
def test_neither_too_hard_nor_too_easy(pass_rate: float, survives: bool):
    arena = scripted_arena()
    results = written(("30 + 4", pass_rate))
    arena.score_group(results)
    assert results[0].rewards == {"Generator": float(survives)}
    assert ("30 + 4" in kept(arena)) == survives
    assert results[0].rollout.metrics["survived/Generator"] == survives


def test_nothing_is_kept_twice():
    """The first of two is kept; so are neither what the store began with, nor its numbers swapped."""
    arena = scripted_arena()
    results = written(
        ("30 + 4", 0.5), ("30 + 4", 0.5), ("4 + 30", 0.5), ("2 + 1", 0.5), ("30 - 4", 0.5), (None, None)
    )
    arena.score_group(results)
    assert [result.rewards["Generator"] for result in results] == [1, 0, 0, 0, 1, 0]
    assert kept(arena) == [*SEEDS, "30 + 4", "30 - 4"]
    metrics = [result.rollout.metrics for result in results]
    assert [m["known/Generator"] for m in metrics] == [0, 1, 1, 1, 0, 0]
    assert [m["readable/Generator"] for m in metrics] == [1, 1, 1, 1, 1, 0]
    assert [m["store/size"] for m in metrics] == [len(SEEDS) + 2] * 6


def test_the_oldest_goes_when_the_store_is_full():
    arena = scripted_arena(store_size=len(SEEDS))
    arena.score_group(written(("30 + 4", 0.5)))
    assert kept(arena) == [*SEEDS[1:], "30 + 4"]


def test_a_generator_that_failed_and_attempts_are_left_alone():
    arena = scripted_arena()
    failed = GenerateResult(Rollout("b0.0", "generate", error="ValueError: …"))
    attempt = GenerateResult(Rollout("b0.1", "solve", "1 + 2", rewards={"Solver": 1.0}))
    arena.score_group([failed])
    arena.score_group([attempt])
    assert (failed.rewards, attempt.rewards, kept(arena)) == ({}, {"Solver": 1.0}, list(SEEDS))


async def test_what_survives_is_what_comes_next():
    """All Generators write 30 + 4: it is kept once, and a store of one has nothing else from then on."""
    arena = scripted_arena(answers=["34"] * 24, store_size=1, hardest=0, easiest=1)
    arena.configure(RunConfig(batch_size=12))
    step = await arena.step()
    generated = [r for r in step.results if r.rollout.episode_type == "generate"]
    assert [r.rewards["Generator"] for r in generated] == [1, 0, 0, 0]
    # rewards 1, 0, 0, 0: mean 0.25, deviation sqrt(3)/4
    advantages = [r.rollout.advantages["Generator"] for r in generated]
    assert advantages == pytest.approx([0.75 / 0.43311, *[-0.25 / 0.43311] * 3], rel=1e-4)
    following = arena.next_batch()
    assert [r.artifact for r in following if r.episode_type == "solve"] == ["30 + 4"] * 8
    assert [r.artifact for r in following if r.episode_type == "generate"] == [["30 + 4"] * 3] * 4


def test_a_batch_is_new_problems_and_groups_of_attempts_by_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = SelfEvolvingDatasetArena(32, 8)
        arena.configure(RunConfig(seed=seed, batch_size=32))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [r.episode_type for r in first] == ["generate"] * 8 + ["solve"] * 24
    assert {r.group for r in first[:8]} == {"new problems"}
    assert [len({(r.group, r.artifact) for r in first[a : a + 8]}) for a in (8, 16, 24)] == [1, 1, 1]


def test_a_checkpoint_keeps_the_problems():
    arena, other = scripted_arena(), scripted_arena()
    arena.score_group(written(("30 + 4", 0.5)))
    other.load_state_dict(arena.state_dict())
    assert kept(other) == kept(arena)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generators": 12}, "of 12 episodes 12 generate"),
        ({"hardest": 0.9}, "no pass rate is from 0.9 to 0.8"),
    ],
)
def test_settings_that_keep_nothing_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        SelfEvolvingDatasetArena(12, **settings)
