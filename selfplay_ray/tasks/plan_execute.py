"""Plan, execute, critique, revise: four roles solve one word problem, and each is paid for what it did itself.

Everything is computed: what the problem comes to, what the plan comes to, whether the result is right. So the Executor
is paid for following the plan, a wrong one too, and the Critic for telling a right result from a wrong one. The Planner
is paid for a sum of the problem's own numbers, which leaves the calculating to others; a result it adds is not shown.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.judging import read_choice
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Examples, Role, Rollout

PLANNER, EXECUTOR, CRITIC, REVISER = "Planner", "Executor", "Critic", "Reviser"
NAMES = ("Ann", "Bob", "Carla", "Dan", "Eve", "Finn", "Gina", "Hugo")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "nuts")
SUM = re.compile(r"\s*(\d{1,3}(?: ?[-+] ?\d{1,3}){1,5})(?: ?=.*)?\.?\s*", re.DOTALL)
TERM = re.compile(r"[-+]? ?\d+")
NUMBER = re.compile(r"-?\d+")
FORMAT, ENDING = 0.1, 0.4  # for an answer of the right kind, and for one that only ends right


class Problem(NamedTuple):
    """Somebody has some things, gets more, gives some away."""

    name: str
    things: str
    has: int
    gets: int
    gives: int

    @property
    def terms(self) -> list[int]:
        """What is to be added up."""
        return [self.has, self.gets, -self.gives]

    @property
    def answer(self) -> int:
        return sum(self.terms)

    def __str__(self) -> str:
        return (
            f"{self.name} has {self.has} {self.things}, gets {self.gets} more and gives {self.gives} away. "
            f"How many {self.things} are left?"
        )


EXAMPLES = (
    # a problem, its plan, a result, whether that is right
    (Problem("Tom", "cups", 5, 3, 2), "5 + 3 - 2", "6", "right"),
    (Problem("Mia", "balls", 4, 4, 1), "4 + 4 - 1", "9", "wrong"),
)


def read_plan(text: str) -> str | None:
    """The sum in ``text``, if there is nothing else in it but a result, which is left out."""
    found = SUM.fullmatch(text)
    return found[1] if found else None


def plan_terms(plan: str) -> list[int]:
    """What a plan adds up, with its signs."""
    return [int(term.replace(" ", "")) for term in TERM.findall(plan)]


def last_number(text: str) -> int | None:
    numbers = NUMBER.findall(text)
    return int(numbers[-1]) if numbers else None


def number_reward(text: str, wanted: int) -> float:
    """0.1 for a number, 0.4 for ending with the right one, 1 for saying nothing else."""
    if last_number(text) != wanted:
        return FORMAT if NUMBER.search(text) else 0.0
    return 1.0 if text.strip().rstrip(".") == str(wanted) else ENDING


def planning(problem: Problem) -> str:
    return f"{problem} Write the sum."


def execution(plan: str) -> str:
    return f"Calculate: {plan}"


def criticism(problem: Problem, plan: str, result: str) -> str:
    return f"{problem}\nPlan: {plan}\nResult: {result}\nIs the result right or wrong?"


def revision(problem: Problem, plan: str, result: str, verdict: str) -> str:
    return f"{problem}\nPlan: {plan}\nResult: {result}\nCritic: {verdict}\nWhat is the answer?"


def stage_rewards(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Each for its own work. Planner: 0.1 for a sum, 1 for that of the problem. Executor: :func:`number_reward` of what
    the plan comes to. Critic: 0.1 for a verdict, 1 for a true one. Reviser: :func:`number_reward` of the answer."""
    said = {step.role_id: step.completion_text for step in rollout.steps}
    problem, plan = Problem(*rollout.artifact), read_plan(said[PLANNER])
    if plan is None:
        return {PLANNER: 0.0}
    answer, terms = problem.answer, plan_terms(plan)
    verdict = read_choice(said[CRITIC], ["right", "wrong"])
    truth = "right" if last_number(said[EXECUTOR]) == answer else "wrong"
    return {
        PLANNER: 1.0 if sorted(terms) == sorted(problem.terms) else FORMAT,
        EXECUTOR: number_reward(said[EXECUTOR], sum(terms)),
        CRITIC: 0.0 if verdict is None else 1.0 if verdict == truth else FORMAT,
        REVISER: number_reward(said[REVISER], answer),
    }


def solved(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Whether the problem was solved by the Executor's result, and by the Reviser's; not, where nobody got so far."""
    answer = Problem(*rollout.artifact).answer
    said = {step.role_id: step.completion_text for step in rollout.steps}
    return {role: float(last_number(said.get(role, "")) == answer) for role in (EXECUTOR, REVISER)}


def unreadable(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Whether the plan couldn't be read, which ended the episode."""
    return {PLANNER: float(read_plan(rollout.steps[0].completion_text) is None)}


class PlanExecuteEpisode(Episode):
    """Four steps, or one: after a plan that can't be read nobody else is asked, or paid."""

    rubric = Rubric([stage_rewards, solved, unreadable], [1.0, 0.0, 0.0])

    async def rollout(self, arena: Arena, artifact: list[Any], state: EpisodeState) -> EpisodeState:
        problem = Problem(*artifact)
        examples = [(planning(shown), plan) for shown, plan, _, _ in EXAMPLES]
        plan = read_plan(await self.ask(arena, PLANNER, examples, planning(problem)))
        if plan is None:
            return state
        examples = [(execution(shown[1]), f"{shown[0].answer}") for shown in EXAMPLES]
        result = await self.ask(arena, EXECUTOR, examples, execution(plan))
        examples = [(criticism(*shown[:3]), shown[3]) for shown in EXAMPLES]
        verdict = await self.ask(arena, CRITIC, examples, criticism(problem, plan, result))
        examples = [(revision(*shown), f"{shown[0].answer}") for shown in EXAMPLES]
        await self.ask(arena, REVISER, examples, revision(problem, plan, result, verdict))
        return state

    async def ask(self, arena: Arena, role: str, examples: Examples, question: str) -> str:
        """What ``role`` answers ``question``, after examples of how to."""
        return (await self.call_model(role, question, arena, examples=examples)).text.strip()


class PlanExecuteArena(GroupedArena):
    """``batch_size`` episodes a step, ``group_size`` on each problem, compared with each other."""

    def __init__(self, batch_size: int, group_size: int = 8, **options: Any) -> None:
        super().__init__("plan", batch_size, group_size, **options)
        self.add_role(Role(PLANNER, max_tokens=16))
        for role in (EXECUTOR, CRITIC, REVISER):
            self.add_role(Role(role, max_tokens=8))
        self.add_episode("plan", PlanExecuteEpisode())

    def draw_artifact(self) -> list[Any]:
        """A problem of numbers from 1 to 9, in which nobody gives away more than there are."""
        has, gets = self.rng.randint(1, 9), self.rng.randint(1, 9)
        gives = self.rng.randint(1, min(9, has + gets))
        return [self.rng.choice(NAMES), self.rng.choice(THINGS), has, gets, gives]

    def describe(self, artifact: list[Any]) -> str:
        return str(Problem(*artifact))
