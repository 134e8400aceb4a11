"""The majority's word is the truth: votes, ties, abstentions and rewards by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.evaluation import evaluate
from selfplay_ray.tasks.ensemble_verification import EnsembleVerificationArena, majority, read_answer
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", "7"),
        (" It is 7.\n", "7"),
        ("3 + 4 = 7", "7"),
        ("07", "7"),
        ("0", "0"),
        ("-7", "-7"),
        ("7 or 8", None),
        ("seven", None),
        ("", None),
        ("7 =", None),
    ],
)
def test_an_attempt_is_read_if_it_says_one_thing(text: str, answer: str | None):
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    ("votes", "quorum", "agreed"),
    [
        (["7", "7", "8", "9"], 2, "7"),  # more than for anything else; half isn't needed
        (["7", "7", "8", "8"], 2, None),  # a tie
        (["7", "7", "8", "8", "7"], 2, "7"),
        (["7", "8", "9", None], 2, None),  # nobody agrees
        (["7", "7", None, None, None], 2, "7"),  # silence is no vote
        (["7", "7", "8", None], 3, None),  # too few
        ([None, None, None], 2, None),
        ([], 2, None),
    ],
)
def test_a_majority(votes: Sequence[str | None], quorum: int, agreed: str | None):
    assert majority(votes, quorum) == agreed


async def scripted_group(
    *replies: str, asked: Sequence[int] = (3, 4), quorum: int = 2
) -> list[GenerateResult]:
    says = iter(replies)
    arena = EnsembleVerificationArena(
        len(replies), len(replies), quorum, client=MockInferenceClient(lambda messages: next(says))
    )
    arena.get_batch = lambda: [EpisodeRequest("solve", list(asked), group="q")] * len(replies)  # type: ignore[method-assign]
    return (await arena.step()).results


async def test_outliers_and_the_silent_lose():
    results = await scripted_group("7", "it is 7", "8", "no idea")
    assert [result.rewards["Solver"] for result in results] == [1, 1, -1, -1]
    # mean 0, deviation 1
    advantages = [result.rollout.advantages["Solver"] for result in results]
    assert advantages == pytest.approx([1 / 1.0001, 1 / 1.0001, -1 / 1.0001, -1 / 1.0001])
    metrics = [result.rollout.metrics for result in results]
    assert [m["abstained/Solver"] for m in metrics] == [0, 0, 0, 1]
    assert [m["right/Solver"] for m in metrics] == [1, 1, 0, 0]
    assert [(m["majority/found"], m["majority/right"]) for m in metrics] == [(1, 1)] * 4


async def test_the_known_answer_moves_no_reward():
    results = await scripted_group("8", "8", "7")
    assert [result.rewards["Solver"] for result in results] == [1, 1, -1]
    assert [result.rollout.metrics["majority/right"] for result in results] == [0, 0, 0]
    assert [result.rollout.metrics["right/Solver"] for result in results] == [0, 0, 1]


@pytest.mark.parametrize("replies", [("7", "7", "8", "8"), ("7", "8", "9", "hm"), ("hm", "hm", "hm", "hm")])
async def test_without_a_majority_nobody_can_tell(replies: Sequence[str]):
    results = await scripted_group(*replies)
    assert [(result.rewards, result.rollout.unscored) for result in results] == [({}, ["Solver"])] * 4
    assert all(result.rollout.metrics["majority/found"] == 0 for result in results)
    assert not any("majority/right" in result.rollout.metrics for result in results)


def test_an_attempt_that_failed_has_no_vote():
    arena = EnsembleVerificationArena(3, 3, 2)
    ended = [
        GenerateResult(Rollout(f"b0.{i}", "solve", [3, 4], extras={"answer": "7"}, error=error))
        for i, error in enumerate((None, None, "ValueError: …"))
    ]
    arena.score_group(ended)
    assert [result.rewards for result in ended] == [{"Solver": 1.0}, {"Solver": 1.0}, {}]


def test_attempts_at_a_question_are_a_group_and_questions_come_from_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        arena = EnsembleVerificationArena(16, 8)
        arena.configure(RunConfig(seed=seed, batch_size=16))
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({(r.group, tuple(r.artifact)) for r in first[a : a + 8]}) for a in (0, 8)] == [1, 1]
    assert len({request.group for request in first}) == 2


async def test_in_an_evaluation_each_question_is_one_observation():
    arena = EnsembleVerificationArena(16, 8, client=MockInferenceClient(lambda messages: "7"))
    evaluation = await evaluate(arena, 32)
    assert evaluation.rewards["Solver"].mean == 1
    assert evaluation.rewards["Solver"].clusters == 4
