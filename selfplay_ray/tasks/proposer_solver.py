"""Proposer and Solver: one asks an arithmetic question, eight attempts at it say how hard it was.

The Proposer earns 1 - 2 |pass rate - 0.5|: nothing for a question that all or none of its Solvers get right
(the "Goldilocks" reward; Zhao et al. 2025, Absolute Zero, section 3.1), nothing for one that can't be read, and
less for one that others in its batch asked as well. The answer is computed, not believed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState, SingleTurnEpisode
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, GenerateResult, Message, Role, Rollout

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
QUESTION = re.compile(r"(?<!\d)(\d{1,3}) ?([-+*]) ?(\d{1,3})(?!\d)")
NUMBER = re.compile(r"-?\d+")
DUPLICATE_PENALTY = 0.5
REQUEST = "Repeat with other numbers: "


@dataclass(frozen=True, slots=True)
class Question:
    left: int
    operator: str
    right: int

    @classmethod
    def parse(cls, text: str) -> Question | None:
        """The one question in ``text``; None if there is none, or more than one."""
        found = QUESTION.findall(text)
        return cls(int(found[0][0]), found[0][1], int(found[0][2])) if len(found) == 1 else None

    @property
    def answer(self) -> int:
        return int(OPERATORS[self.operator](self.left, self.right))

    def resembles(self, other: Question) -> bool:
        """Whether it is the same question, or the same with its numbers swapped."""
        return self.operator == other.operator and {self.left, self.right} == {other.left, other.right}

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


def solver_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Graded, so that a small model has somewhere to start: 0.1 for a number, 0.4 for ending with the right one,
    1 for saying nothing beyond the equation or the answer."""
    text, question = rollout.steps[0].completion_text, rollout.artifact
    numbers = NUMBER.findall(text)
    if not numbers:
        return {"Solver": 0.0}
    if int(numbers[-1]) != question.answer:
        return {"Solver": 0.1}
    exact = text.strip().rstrip(".").removeprefix(f"{question} = ") == str(question.answer)
    return {"Solver": 1.0 if exact else 0.4}


def proposer_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """1 - 2 |pass rate - 0.5|; 0 for a question that can't be read."""
    pass_rate = rollout.extras["pass_rate"]
    return {"Proposer": 0.0 if pass_rate is None else 1 - 2 * abs(pass_rate - 0.5)}


class SolveEpisode(SingleTurnEpisode):
    rubric = Rubric([solver_reward])

    def get_initial_role(self, artifact: Question, state: EpisodeState) -> str:
        return "Solver"

    def get_initial_prompt(self, arena: Arena, artifact: Question, state: EpisodeState) -> str:
        return f"What is {artifact}?"


class ProposeEpisode(Episode):
    rubric = Rubric([proposer_reward])

    def __init__(self, n_solver_rollouts: int) -> None:
        self.n_solver_rollouts = n_solver_rollouts

    async def rollout(self, arena: Arena, artifact: Sequence[str], state: EpisodeState) -> EpisodeState:
        shown, answered, asked = artifact
        example = [Message(role="user", content=REQUEST + shown), Message(role="assistant", content=answered)]
        messages = arena.role("Proposer").build_messages(REQUEST + asked, example)
        reply = await self.call_model("Proposer", messages, arena)
        question = Question.parse(reply.text)
        state.data["question"] = question
        if question is not None:
            requests = [EpisodeRequest("solve", question)] * self.n_solver_rollouts
            state.child_results = await arena.generate_rollouts(requests)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        passed = [child.rewards.get("Solver", 0.0) >= 0.4 for child in state.child_results]
        pass_rate = sum(passed) / len(passed) if passed else None
        return {"question": state.data["question"], "pass_rate": pass_rate}


class ProposerSolverArena(Arena):
    """``batch_size`` Proposers a step, each shown an example of its own so that they start out different."""

    def __init__(self, batch_size: int, n_solver_rollouts: int = 8, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role("Proposer", max_tokens=12))
        self.add_role(Role("Solver", max_tokens=12))
        self.add_episode("propose", ProposeEpisode(n_solver_rollouts))
        self.add_episode("solve", SolveEpisode())

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("propose", [self.example() for _ in range(3)]) for _ in range(self.batch_size)]

    def example(self) -> str:
        """What a Proposer is shown: a sum, of one-digit numbers or of larger ones."""
        largest = self.rng.choice((9, 9, 30, 99))
        return f"{self.rng.randint(1, largest)} + {self.rng.randint(1, largest)}"

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        questions = [result.rollout.extras.get("question") for result in results]
        for index, (result, question) in enumerate(zip(results, questions, strict=True)):
            others = [other for number, other in enumerate(questions) if number != index]
            if question is not None and others:
                copies = sum(other is not None and question.resembles(other) for other in others)
                result.rewards["Proposer"] -= DUPLICATE_PENALTY * copies / len(others)
                result.rollout.metrics["duplicates/Proposer"] = copies
