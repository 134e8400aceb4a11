"""Proposer and Solver: every reward by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from selfplay_ray.config import RunConfig
from selfplay_ray.evaluation import evaluate
from selfplay_ray.tasks.proposer_solver import (
    DUPLICATE_PENALTY,
    ProposerSolverArena,
    Question,
    proposer_reward,
    solver_reward,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import (
    Completion,
    EpisodeRequest,
    GenerateResult,
    Message,
    PolicySpan,
    Rollout,
    Step,
)


def answered(text: str, question: Question) -> Rollout:
    said = Completion(text, (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    return Rollout("b0.0/0/0", "solve", question, steps=[Step("Solver", 0, [], said, 1.0)])


def arena(reply: object = "", **options: object) -> ProposerSolverArena:
    """One whose model says ``reply``, or what ``reply(messages)`` returns."""
    respond = reply if callable(reply) else lambda messages: str(reply)
    return ProposerSolverArena(4, 4, client=MockInferenceClient(respond), **options)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("3 + 4", Question(3, "+", 4)),
        ("Repeat with other numbers: 12 - 7.", Question(12, "-", 7)),
        ("What is 9*8?", Question(9, "*", 8)),
        ("100 * 999", Question(100, "*", 999)),
        ("3+4 = 8", Question(3, "+", 4)),  # its answer is not believed
        ("3 + 4 and 5 + 6", None),  # which of them?
        ("1000 + 1", None),
        ("1 + 1000", None),
        ("3 / 4", None),
        ("3  +  4", None),
        ("three plus four", None),
        ("", None),
    ],
)
def test_a_question_is_read_when_there_is_just_one(text: str, question: Question | None):
    assert Question.parse(text) == question


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question(12, "+", 7), 19),
        (Question(12, "-", 17), -5),
        (Question(12, "*", 7), 84),
        (Question(0, "-", 0), 0),
    ],
)
def test_the_answer_is_computed(question: Question, answer: int):
    assert question.answer == answer


def test_a_question_resembles_itself_with_its_numbers_swapped():
    question = Question(3, "+", 4)
    assert question.resembles(Question(3, "+", 4))
    assert question.resembles(Question(4, "+", 3))
    assert not question.resembles(Question(3, "*", 4))
    assert not question.resembles(Question(3, "+", 5))
    assert not question.resembles(Question(3, "+", 3))


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("I don't know.", 0.0),
        ("", 0.0),
        ("8", 0.1),  # a number, not the right one
        ("7 or 8", 0.1),  # the right one, but not last
        ("-7", 0.1),
        ("17", 0.1),
        ("3 + 4 is 7", 0.4),
        ("The answer is 7!", 0.4),
        ("4 + 3 = 7", 0.4),  # not the equation that was asked
        ("7", 1.0),
        (" 7.\n", 1.0),
        ("3 + 4 = 7", 1.0),
        ("3 + 4 = 7.", 1.0),
    ],
)
def test_a_solver_is_graded(text: str, reward: float):
    assert solver_reward(answered(text, Question(3, "+", 4)), arena()) == {"Solver": reward}


def test_a_negative_answer_can_be_given():
    assert solver_reward(answered("3 - 8 = -5", Question(3, "-", 8)), arena()) == {"Solver": 1.0}


@pytest.mark.parametrize(
    ("pass_rate", "reward"),
    # 1 - 2 |p - 0.5|
    [(None, 0.0), (0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.625, 0.75), (1.0, 0.0)],
)
def test_a_proposer_earns_most_for_a_question_that_half_of_the_solvers_get(
    pass_rate: float | None, reward: float
):
    rollout = Rollout("b0.0", "propose", extras={"pass_rate": pass_rate})
    assert proposer_reward(rollout, arena()) == {"Proposer": reward}


async def test_solvers_attempt_what_the_proposer_asked():
    """Answers 7, 8, "", and "it is 7": two of four pass, 1 - 2 |0.5 - 0.5| = 1."""
    answers = iter(["7", "8", "", "it is 7"])

    def reply(messages: Sequence[Message]) -> str:
        return next(answers) if messages[-1]["content"] == "What is 3 + 4?" else "3 + 4"

    result = await arena(reply).run_episode("propose", ["1 + 2", "2 + 5", "3 + 3"])
    assert [child.rewards["Solver"] for child in result.children] == [1.0, 0.1, 0.0, 0.4]
    assert result.rewards == {"Proposer": 1.0}
    assert result.rollout.extras == {"question": Question(3, "+", 4), "pass_rate": 0.5}
    assert [message["content"].split()[-3:] for message in result.rollout.steps[0].prompt] == [
        ["1", "+", "2"],
        ["2", "+", "5"],
        ["3", "+", "3"],
    ]


async def test_nobody_solves_a_question_that_cannot_be_read():
    result = await arena("What about 1 + 2 or 3 + 4?").run_episode("propose", ["1 + 2", "2 + 5", "3 + 3"])
    assert (result.children, result.rewards, result.rollout.error) == ([], {"Proposer": 0.0}, None)


async def test_a_solver_that_failed_did_not_pass():
    calls = iter(range(10))

    def reply(messages: Sequence[Message]) -> str:
        if messages[-1]["content"] != "What is 3 + 4?":
            return "3 + 4"
        if next(calls) == 0:
            raise RuntimeError("the line is dead")
        return "7"

    result = await arena(reply).run_episode("propose", ["1 + 2", "2 + 5", "3 + 3"])
    assert result.rollout.extras["pass_rate"] == 0.75
    assert result.rewards == {"Proposer": 0.5}


def proposed(*questions: Question | None) -> list[GenerateResult]:
    return [
        GenerateResult(
            Rollout(f"b0.{i}", "propose", extras={"question": question}, rewards={"Proposer": 1.0})
        )
        for i, question in enumerate(questions)
    ]


def test_a_question_that_others_asked_too_earns_less():
    """Each loses 0.5 * (copies / others): the first three have 2 copies among 4 others, so 1 - 0.5 * 2/4 = 0.75."""
    results = proposed(
        Question(3, "+", 4), Question(4, "+", 3), Question(3, "+", 4), Question(3, "*", 4), None
    )
    arena().score_group(results)
    assert [result.rewards["Proposer"] for result in results] == [0.75, 0.75, 0.75, 1.0, 1.0]
    assert [result.rollout.metrics.get("duplicates/Proposer") for result in results] == [2, 2, 2, 0, None]


def test_alone_nobody_is_copied():
    results = proposed(Question(3, "+", 4))
    arena().score_group(results)
    assert results[0].rewards == {"Proposer": 1.0}


def test_a_failed_proposer_is_left_alone():
    results = proposed(Question(3, "+", 4), Question(3, "+", 4))
    results.append(GenerateResult(Rollout("b0.2", "propose", error="ValueError: …")))
    arena().score_group(results)
    assert [result.rewards for result in results] == [{"Proposer": 0.75}, {"Proposer": 0.75}, {}]


def test_a_batch_shows_every_proposer_examples_of_its_own_and_depends_on_the_seed():
    def batch(seed: int) -> list[EpisodeRequest]:
        made = ProposerSolverArena(8)
        made.configure(RunConfig(seed=seed, batch_size=8))
        return made.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [request.episode_type for request in first] == ["propose"] * 8
    assert len({tuple(request.artifact) for request in first}) == 8
    assert all(Question.parse(text) for request in first for text in request.artifact)


async def test_siblings_are_compared_and_a_role_with_its_own():
    """Two proposers whose questions are different, with pass rates of 1/4 and 1: rewards 0.5 and 0, mean 0.25,
    standard deviation 0.25, advantages ±0.25 / (0.25 + 0.0001)."""
    solved = iter([True, False, False, False])

    def reply(messages: Sequence[Message]) -> str:
        asked = messages[-1]["content"]
        if asked == "What is 3 + 4?":
            return "7" if next(solved) else "8"
        if asked == "What is 5 + 5?":
            return "10"
        return "3 + 4" if "1 + 1" in asked else "5 + 5"

    made = arena(reply)
    made.batch_size = 2
    made.get_batch = lambda: [  # type: ignore[method-assign]
        EpisodeRequest("propose", ["2 + 2", "2 + 3", asked]) for asked in ("1 + 1", "1 + 2")
    ]
    step = await made.step()
    proposers = [result.rollout.advantages["Proposer"] for result in step.results]
    assert proposers == pytest.approx([0.25 / 0.2501, -0.25 / 0.2501])
    # rewards 1, 0.1, 0.1, 0.1: mean 0.325, deviation 0.45 * sqrt(3) / 2 = 0.38971
    solvers = [child.rollout.advantages["Solver"] for child in step.results[0].children]
    assert solvers == pytest.approx([0.675 / 0.38981, *[-0.225 / 0.38981] * 3], rel=1e-4)
    assert [child.rollout.advantages["Solver"] for child in step.results[1].children] == [0.0] * 4


async def test_an_evaluation_scores_proposers_in_pairs():
    """All ask the same: the share of the others that did is 1, in a pair as in a batch of any size."""
    evaluation = await evaluate(arena("3 + 4"), 5)
    assert len(evaluation.results) == 6
    assert evaluation.metrics["duplicates/Proposer"].mean == 1.0
    assert evaluation.rewards["Proposer"].mean == 0.0 - DUPLICATE_PENALTY  # 3 + 4 is no answer: none passed
    assert (evaluation.rewards["Proposer"].clusters, evaluation.rewards["Solver"].clusters) == (3, 3)
    assert len({tuple(tree.rollout.artifact) for tree in evaluation.results}) == 6
