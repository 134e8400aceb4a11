"""Proposer and Solver: one asks an arithmetic question, eight attempts at it say how hard it was.

The Proposer earns 1 - 2 |pass rate - 0.5|: nothing for a question that all or none of its Solvers get right
(the "Goldilocks" reward; Zhao et al. 2025, Absolute Zero, section 3.1), nothing for one that can't be read, and
less for one that others in its batch asked as well. The answer is computed, not believed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState, SingleTurnEpisode
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, GenerateResult, Role, Rollout

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
QUESTION = re.compile(r"[^\d]*?(\d{1,3}) ?([-+*]) ?(\d{1,3})(?!\d)[^\d]*")
NUMBER = re.compile(r"-?\d+")
REQUEST = "Repeat with other numbers: "
RIGHT = 0.4  # the least reward of a right answer
DUPLICATE_PENALTY = 0.5


class Question(NamedTuple):
    left: int
    symbol: str
    right: int

    @classmethod
    def parse(cls, text: str) -> Question | None:
        """The question in ``text``, of two numbers and no more; an answer it may give after "=" is ignored."""
        found = QUESTION.fullmatch(text.partition("=")[0])
        return cls(int(found[1]), found[2], int(found[3])) if found else None

    @property
    def answer(self) -> int:
        return int(OPERATORS[self.symbol](self.left, self.right))

    def resembles(self, other: Question) -> bool:
        """Whether it is the same question, or the same with its numbers swapped."""
        return other in (self, Question(self.right, self.symbol, self.left))

    def __str__(self) -> str:
        return f"{self.left} {self.symbol} {self.right}"


def solver_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Graded, so that a small model has somewhere to start: 0.1 for a number, 0.4 for ending with the right one,
    1 for saying nothing beyond the equation or the answer."""
    text, question = rollout.steps[0].completion_text, rollout.artifact
    numbers = NUMBER.findall(text)
    if not numbers or int(numbers[-1]) != question.answer:
        return {"Solver": 0.1 if numbers else 0.0}
    exact = text.strip().rstrip(".").removeprefix(f"{question} = ") == str(question.answer)
    return {"Solver": 1.0 if exact else RIGHT}


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
        example = (REQUEST + shown, answered)
        reply = await self.call_model("Proposer", REQUEST + asked, arena, examples=[example])
        question = Question.parse(reply.text)
        state.data["question"] = question
        if question is not None:
            requests = [EpisodeRequest("solve", question)] * self.n_solver_rollouts
            state.child_results = await arena.generate_rollouts(requests)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        passed = [child.rewards.get("Solver", 0.0) >= RIGHT for child in state.child_results]
        return {
            "question": state.data["question"],
            "pass_rate": sum(passed) / len(passed) if passed else None,
        }


class ProposerSolverArena(Arena):
    """``batch_size`` Proposers a step, each shown examples of its own so that they start out different."""

    def __init__(self, batch_size: int, n_solver_rollouts: int = 8, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role("Proposer", max_tokens=12))
        self.add_role(Role("Solver", max_tokens=12))
        self.add_episode("propose", ProposeEpisode(n_solver_rollouts))
        self.add_episode("solve", SolveEpisode())

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("propose", [self.example() for _ in range(3)]) for _ in range(self.batch_size)]

    def get_eval_batch(self, episodes: int) -> list[EpisodeRequest]:
        """Scored in pairs: the share of the others that asked the same has one and the same mean in groups of any
        size, and every pair is independent of the next."""
        shown = [[self.example() for _ in range(3)] for _ in range(episodes + episodes % 2)]
        return [EpisodeRequest("propose", three, group=f"pair-{i // 2}") for i, three in enumerate(shown)]

    def example(self) -> str:
        """What a Proposer is shown: a sum, of one-digit numbers or of larger ones."""
        largest = self.rng.choice((9, 9, 30, 99))
        return f"{self.rng.randint(1, largest)} + {self.rng.randint(1, largest)}"

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """A Proposer pays for the share of the others that asked the same."""
        asked = {result.rollout.id: result.rollout.extras.get("question") for result in results}
        for result in results:
            question = asked[result.rollout.id]
            others = [other for name, other in asked.items() if name != result.rollout.id]
            if question is not None and others:
                copies = sum(other is not None and question.resembles(other) for other in others)
                result.rollout.metrics["duplicates/Proposer"] = copies
                result.rewards["Proposer"] -= DUPLICATE_PENALTY * copies / len(others)
