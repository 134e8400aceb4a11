"""Train where it is hard but not hopeless: problems that were nearly missed or nearly solved are drawn more often.

After each batch a problem's weight moves towards 4 m (1 - m), with m the mean grade of the attempts at it: four times
the learnability of Rutherford et al. 2024 (No Regrets, arXiv:2408.15099), so that it is 1 for a problem that is solved
half the time. Grades say how near an answer came, so that a problem that nobody solves and somebody nearly did counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from selfplay_ray.answers import read_number, same_number
from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.seeds import derive_rng
from selfplay_ray.tasks.proposer_solver import OPERATORS
from selfplay_ray.types import GenerateResult, Role, Rollout

KINDS = (("+", 9), ("-", 9), ("+", 20), ("*", 9), ("+", 99))
"""What problems there are, of numbers up to which."""
NEAR = 0.5  # what a wrong answer is worth at most
LEAST_WEIGHT = 0.02
EXAMPLES = (("What is 2 + 1?", "3"), ("What is 3 * 2?", "6"))


def problems(of_each: int) -> list[str]:
    """``of_each`` kind that many different ones, always the same."""
    made: dict[str, None] = {}
    for symbol, largest in KINDS:
        rng, wanted = derive_rng(0, symbol, largest), len(made) + of_each
        while len(made) < wanted:
            made[f"{rng.randint(1, largest)} {symbol} {rng.randint(1, largest)}"] = None
    return list(made)


def answer_of(problem: str) -> int:
    left, symbol, right = problem.split()
    return int(OPERATORS[symbol](int(left), int(right)))


def grade(reply: str, answer: int) -> float:
    """1 for the answer; for another number at most a half, and the less the further off it is in proportion; 0 for
    what can't be read."""
    said = read_number(reply)
    if said is None:
        return 0.0
    if same_number(reply, str(answer)):
        return 1.0
    return NEAR * max(0.0, 1 - float(abs(said.value - answer)) / max(abs(answer), 1))


def learnability(grade: float) -> float:
    """What the weight of a problem moves towards."""
    return max(LEAST_WEIGHT, 4 * grade * (1 - grade))


def closeness(rollout: Rollout, arena: Arena) -> dict[str, float]:
    return {"Solver": grade(rollout.steps[0].completion_text, answer_of(rollout.artifact))}


class SolveEpisode(Episode):
    rubric = Rubric([closeness])

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        await self.call_model("Solver", f"What is {artifact}?", arena, examples=EXAMPLES)
        return state


class DifficultyAwareArena(GroupedArena):
    """``batch_size`` attempts a step, ``group_size`` at each problem, of ``pool`` problems of each kind. ``adapt`` is
    how far a weight moves at once: 0 never, which is drawing uniformly, 1 all the way."""

    def __init__(
        self, batch_size: int, group_size: int = 8, *, pool: int = 40, adapt: float = 0.5, **options: Any
    ) -> None:
        super().__init__("solve", batch_size, group_size, **options)
        self.adapt = adapt
        self.add_role(Role("Solver", max_tokens=8))
        self.add_episode("solve", SolveEpisode())
        store = self.add_store("problems")
        for problem in problems(pool):
            store.add(Artifact(problem, None))

    def draw_artifacts(self, count: int) -> list[str]:
        return [problem.id for problem in self.stores["problems"].sample(count, weighted=True)]

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """Changes no reward: weighs the problem anew. A store's data is the mean grade when it was last asked."""
        attempts = [result.rollout for result in results if result.rollout.error is None]
        if not attempts:
            return
        store, problem = self.stores["problems"], attempts[0].artifact
        kept = store.get(problem)
        assert kept is not None
        mean = statistics.fmean(attempt.rewards["Solver"] for attempt in attempts)
        weight = kept.weight + self.adapt * (learnability(mean) - kept.weight)
        store.add(Artifact(problem, mean, weight))
        measured = [artifact.data for artifact in store if artifact.data is not None]
        for attempt in attempts:
            attempt.metrics["solved/Solver"] = float(attempt.rewards["Solver"] == 1)
            attempt.metrics["difficulty/asked"] = 1 - mean
            attempt.metrics["difficulty/known"] = 1 - statistics.fmean(measured)
            attempt.metrics["difficulty/problems_tried"] = len(measured) / len(store)
