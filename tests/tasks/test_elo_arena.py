"""Matches of scripted agents before a scripted judge: rewards and ratings by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.evaluation import evaluate
from selfplay_ray.jobs.train_elo_arena import EloArenaConfig, make_arena
from selfplay_ray.judging import PairwiseJudge
from selfplay_ray.tasks.elo_arena import QUESTIONS, STYLES, EloArena
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Message


def scripted_agents(messages: Sequence[Message]) -> str:
    """Each says its own name."""
    return next(name for name, style in STYLES.items() if messages[0]["content"].startswith(style))


def best_first(*ranking: str) -> Callable[[str], str]:
    """A judge to whom who stands earlier in ``ranking`` is better; of others it can't say anything."""

    def judge(question: str) -> str:
        places = {name: question.find(f"\n{name}\n") for name in ranking}
        shown = [name for name in ranking if places[name] >= 0]
        return "?" if len(shown) < 2 else "A" if places[shown[0]] < places[shown[1]] else "B"

    return judge


def scripted(judge: Callable[[str], str], agents: int = 3, batch_size: int = 1) -> EloArena:
    scripted_judge = MockInferenceClient(lambda messages: judge(messages[-1]["content"]))
    return EloArena(
        batch_size,
        PairwiseJudge("Who is better, A or B?"),
        agents,
        32.0,
        client=MockInferenceClient(scripted_agents),
        judge=scripted_judge,
    )


async def test_everyone_plays_everyone_for_a_zero_sum():
    step = await scripted(best_first("Friend", "Teacher", "Scientist")).step()
    (tree,) = step.results
    assert [match.rollout.artifact["question"] for match in tree.children] == [tree.rollout.artifact] * 3
    assert [match.rewards for match in tree.children] == [
        {"Teacher": 1.0, "Scientist": -1.0},
        {"Teacher": -1.0, "Friend": 1.0},
        {"Scientist": -1.0, "Friend": 1.0},
    ]
    assert all(sum(match.rewards.values()) == 0 for match in tree.children)
    assert [[step.role_id for step in match.rollout.steps] for match in tree.children] == [
        ["Teacher", "Scientist"],
        ["Teacher", "Friend"],
        ["Scientist", "Friend"],
    ]


async def test_ratings_move_match_by_match_and_are_kept():
    """K = 32, all begin with 1000. Teacher beats Scientist: 1016 and 984. Friend beats Teacher, who stood 16 higher:
    E = 1 / (1 + 10^(16/400)) = 0.47699, so Friend gains 32 × 0.52301 = 16.736: 1016.736, and Teacher has 999.264.
    Friend beats Scientist, who stands 32.736 lower: E = 1 / (1 + 10^(-32.736/400)) = 0.54699, so it gains
    32 × 0.45301 = 14.496: 1031.233, and Scientist has 969.504."""
    arena = scripted(best_first("Friend", "Teacher", "Scientist"))
    step = await arena.step()
    wanted = {"Teacher": 999.264, "Scientist": 969.504, "Friend": 1031.233}
    assert arena.ratings() == pytest.approx(wanted, abs=1e-3)
    metrics = step.results[0].rollout.metrics
    assert metrics == pytest.approx({f"elo/{name}": rating for name, rating in wanted.items()}, abs=1e-3)
    assert step.groups[0].metrics["rubric/elo/Friend"] == metrics["elo/Friend"]

    later = scripted(lambda _: "?")
    later.load_state_dict(arena.state_dict())
    assert later.ratings() == arena.ratings()
    await later.step()
    assert later.ratings() == arena.ratings()  # nothing could be read, so nothing was rated


async def test_a_draw_is_rated_and_an_abstention_is_not():
    """Equals that draw stay as they are; who stands 400 higher loses 32 × (10/11 - 1/2) by a draw."""
    arena = scripted(lambda _: "tie", agents=2)
    arena.rate({"question": "", "first": "Teacher", "second": "Scientist"}, 1.0)
    assert arena.ratings() == {"Teacher": 1016.0, "Scientist": 984.0}
    step = await arena.step()
    assert step.results[0].children[0].rewards == {"Teacher": 0.0, "Scientist": 0.0}
    drawn = 32 * (1 / (1 + 10 ** (-32 / 400)) - 0.5)
    assert arena.ratings() == pytest.approx({"Teacher": 1016 - drawn, "Scientist": 984 + drawn})

    silent = scripted(lambda _: "?", agents=2)
    step = await silent.step()
    match = step.results[0].children[0]
    assert (match.rewards, match.rollout.unscored) == ({}, ["Teacher", "Scientist"])
    assert step.groups[0].records == ()
    assert (match.rollout.extras["score"], match.rollout.metrics["judge/no_verdict"]) == (None, 1.0)
    assert silent.ratings() == {"Teacher": 1000.0, "Scientist": 1000.0}


async def test_a_match_that_failed_is_not_rated():
    def die(question: str) -> str:
        raise RuntimeError("the line is dead")

    arena = scripted(die, agents=2)
    step = await arena.step()
    assert step.results[0].children[0].rollout.error is not None
    assert arena.ratings() == {"Teacher": 1000.0, "Scientist": 1000.0}


async def test_who_says_nothing_is_shown_to_say_nothing():
    arena = scripted(lambda q: "B" if q.index("(no answer)") < q.index("Scientist") else "A", agents=2)
    arena.runtime.client.response_fn = (  # type: ignore[attr-defined]
        lambda messages: "" if scripted_agents(messages) == "Teacher" else "Scientist"
    )
    assert (await arena.step()).results[0].children[0].rewards == {"Teacher": -1.0, "Scientist": 1.0}


async def test_an_agent_is_compared_with_what_it_got_before():
    """Friend wins both matches of each round robin: 1 at first, then nothing beyond its baseline of 1."""
    arena = scripted(best_first("Friend", "Teacher", "Scientist"))
    won = [(await arena.step()).results[0].children[1].rollout.advantages["Friend"] for _ in range(2)]
    assert won == pytest.approx([1.0, 0.0])


async def test_an_evaluation_leaves_the_ratings_alone():
    arena = scripted(best_first("Friend", "Teacher", "Scientist"), batch_size=2)
    evaluation = await evaluate(arena, 4)
    assert set(arena.ratings().values()) == {1000.0}
    assert (evaluation.rewards["Friend"].mean, evaluation.rewards["Friend"].clusters) == (1.0, 4)


def test_a_batch_is_drawn_from_the_questions_by_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = make_arena(EloArenaConfig())
        arena.configure(RunConfig(seed=seed, batch_size=4))
        return arena.next_batch()

    assert batch(0) == batch(0)
    assert batch(0) != batch(1)
    assert {request.artifact for request in batch(0)} <= set(QUESTIONS)
    assert list(make_arena(EloArenaConfig(agents=2)).ratings()) == list(STYLES)[:2]
