"""Word problems solved by a scripted crew: every stage's reward by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.jobs.train_plan_execute import PlanExecuteConfig, make_arena
from selfplay_ray.tasks.plan_execute import EXAMPLES, PlanExecuteArena, Problem, plan_terms, read_plan
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import EpisodeRequest, Message, Rollout

ANN = Problem("Ann", "apples", 4, 3, 2)  # 4 + 3 - 2 = 5


def role_of(messages: Sequence[Message]) -> str:
    asked = messages[-1]["content"]
    if asked.startswith("Calculate:"):
        return "Executor"
    ends = {"Write the sum.": "Planner", "right or wrong?": "Critic", "is the answer?": "Reviser"}
    return next(role for end, role in ends.items() if asked.endswith(end))


async def played(plan: str, result: str = "5", verdict: str = "right", final: str = "5") -> Rollout:
    said = {"Planner": plan, "Executor": result, "Critic": verdict, "Reviser": final}
    scripted_crew = MockInferenceClient(lambda messages: said[role_of(messages)])
    arena = PlanExecuteArena(8, client=scripted_crew)
    rollout = (await arena.run_episode("plan", list(ANN))).rollout
    assert rollout.error is None
    return rollout


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4 + 3 - 2", 5),
        (" 4+3-2.\n", 5),
        ("4 + 3 - 2 = 9", 5),  # its result is not believed
        ("10 - 4 - 3", 3),  # from the left
        ("2 - 9", -7),
        ("5", None),  # no plan, an answer
        ("4 + 3 * 2", None),
        ("4 + 3 and 2", None),
        ("-4 + 3", None),
        ("four + 3", None),
        ("1000 + 1", None),
        ("", None),
    ],
)
def test_a_plan_is_a_sum_and_nothing_else(text: str, value: int | None):
    plan = read_plan(text)
    assert (None if plan is None else sum(plan_terms(plan))) == value


@given(st.lists(st.integers(0, 999), min_size=2, max_size=6), st.data())
def test_a_plan_comes_to_what_python_says(numbers: list[int], data: st.DataObject):
    signs = data.draw(st.lists(st.sampled_from("+-"), min_size=len(numbers) - 1, max_size=len(numbers) - 1))
    value = numbers[0] + sum(n if sign == "+" else -n for sign, n in zip(signs, numbers[1:], strict=True))
    rest = "".join(f" {sign} {n}" for sign, n in zip(signs, numbers[1:], strict=True))
    plan = read_plan(f"{numbers[0]}{rest} = 7")
    assert plan == f"{numbers[0]}{rest}"
    assert sum(plan_terms(plan)) == value


async def test_a_result_that_the_planner_adds_is_shown_to_nobody():
    rollout = await played("4 + 3 - 2 = 5.")
    assert rollout.steps[1].prompt[-1]["content"] == "Calculate: 4 + 3 - 2"
    assert all("= 5" not in message["content"] for step in rollout.steps[1:] for message in step.prompt)


async def test_every_stage_reads_what_came_before():
    rollout = await played("4 + 3 - 2", "6", "wrong", "5")
    assert [step.role_id for step in rollout.steps] == ["Planner", "Executor", "Critic", "Reviser"]
    story = "Ann has 4 apples, gets 3 more and gives 2 away. How many apples are left?"
    assert [step.prompt[-1]["content"] for step in rollout.steps] == [
        f"{story} Write the sum.",
        "Calculate: 4 + 3 - 2",
        f"{story}\nPlan: 4 + 3 - 2\nResult: 6\nIs the result right or wrong?",
        f"{story}\nPlan: 4 + 3 - 2\nResult: 6\nCritic: wrong\nWhat is the answer?",
    ]


@pytest.mark.parametrize(
    ("said", "rewards"),
    [
        (("4 + 3 - 2", "5", "right", "5"), (1.0, 1.0, 1.0, 1.0)),
        (("4 + 3 - 2 = 5", "5.", "Right.", " 5 "), (1.0, 1.0, 1.0, 1.0)),
        # a wrong plan well executed, a Critic who sees it, a Reviser who mends it
        (("4 + 3 + 2", "9", "wrong", "5"), (0.1, 1.0, 1.0, 1.0)),
        # the right plan badly executed, a Critic who doesn't see it, a Reviser who believes it
        (("4 + 3 - 2", "6", "right", "6"), (1.0, 0.1, 0.1, 0.1)),
        # in another order it is the same sum; one that the Planner has calculated itself is not
        (("3 + 4 - 2", "5", "right", "5"), (1.0, 1.0, 1.0, 1.0)),
        (("7 - 2", "5", "right", "5"), (0.1, 1.0, 1.0, 1.0)),
        (("5 + 0", "5", "right", "5"), (0.1, 1.0, 1.0, 1.0)),
        # two mistakes that make the right result: the Critic is right to say so
        (("4 + 3 + 2", "5", "right", "5"), (0.1, 0.1, 1.0, 1.0)),
        # right answers among words, and none at all
        (("4 + 3 - 2", "It is 5", "wrong", "The answer is 5"), (1.0, 0.4, 0.1, 0.4)),
        (("4 + 3 - 2", "five", "no", ""), (1.0, 0.0, 0.0, 0.0)),
        (("3 - 9", "-6", "wrong", "-5"), (0.1, 1.0, 1.0, 0.1)),
    ],
)
async def test_each_is_paid_for_its_own_work(said: tuple[str, ...], rewards: tuple[float, ...]):
    rollout = await played(*said)
    assert rollout.rewards == dict(zip(("Planner", "Executor", "Critic", "Reviser"), rewards, strict=True))


async def test_a_plan_that_cannot_be_read_ends_it():
    rollout = await played("First add, then subtract.")
    assert [step.role_id for step in rollout.steps] == ["Planner"]
    assert rollout.rewards == {"Planner": 0.0}
    assert rollout.metrics["unreadable/Planner"] == 1.0
    assert rollout.metrics["solved/Reviser"] == 0.0
    assert not rollout.truncated


async def test_what_revision_changes_is_a_metric():
    metrics = (await played("4 + 3 + 2", "9", "wrong", "So 5")).metrics
    assert (metrics["solved/Executor"], metrics["solved/Reviser"]) == (0.0, 1.0)
    assert metrics["unreadable/Planner"] == 0.0


async def test_attempts_at_one_problem_are_compared():
    """Planners earn 1 and 0: mean 0.5, deviation 0.5. Nobody follows the second, who can't be read."""
    plans = iter(["4 + 3 - 2", "?"])
    said = {"Executor": "5", "Critic": "right", "Reviser": "5"}

    def speak(messages: Sequence[Message]) -> str:
        role = role_of(messages)
        return next(plans) if role == "Planner" else said[role]

    arena = PlanExecuteArena(2, client=MockInferenceClient(speak))
    arena.get_batch = lambda: [EpisodeRequest("plan", list(ANN), group="Ann")] * 2  # type: ignore[method-assign]
    (group,) = (await arena.step()).groups
    assert [record.role_id for record in group.records] == [
        "Planner", "Executor", "Critic", "Reviser", "Planner"
    ]  # fmt: skip
    advantages = [record.advantage for record in group.records]
    assert advantages == pytest.approx([0.5 / 0.5001, 0.0, 0.0, 0.0, -0.5 / 0.5001])


def test_the_examples_are_true():
    for problem, plan, result, verdict in EXAMPLES:
        assert read_plan(plan) == plan
        assert sorted(plan_terms(plan)) == sorted(problem.terms)
        assert (int(result) == problem.answer) == (verdict == "right")


def test_problems_come_from_the_seed_and_leave_nobody_in_debt():
    def batch(seed: int) -> list[EpisodeRequest]:
        config = PlanExecuteConfig(seed=seed, batch_size=64)
        arena = make_arena(config)
        arena.configure(config)
        return arena.next_batch()

    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [len({request.group for request in first[a : a + 8]}) for a in range(0, 64, 8)] == [1] * 8
    assert all(Problem(*request.artifact).answer >= 0 for request in first)
