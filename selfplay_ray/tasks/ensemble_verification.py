"""Several Solvers attempt one question; what most of them say counts as right, and outliers lose.

Nobody is told the answer: the majority's is the only truth there is to the reward (test-time reinforcement learning;
Zuo et al. 2025, TTRL, arXiv:2504.16084, section 2.2). How often it is right is computed, and only reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.types import GenerateResult, Role

AGREES, OUTLIER = 1.0, -1.0
NUMBER = re.compile(r"-?\d+")
EXAMPLES = (("What is 2 + 1?", "3"), ("What is 4 + 5?", "9"))


def read_answer(text: str) -> str | None:
    """The only number in ``text``, or the one after its last "="; None, an abstention, if there isn't just one."""
    numbers = NUMBER.findall(text.rpartition("=")[2])
    return numbers[0].lstrip("0") or "0" if len(numbers) == 1 else None


def majority(votes: Sequence[str | None], quorum: int) -> str | None:
    """What more voted for than for anything else, if at least ``quorum`` did; None in a tie. None is no vote."""
    ranked = Counter(vote for vote in votes if vote is not None).most_common(2)
    if not ranked or ranked[0][1] < quorum or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


class SolveEpisode(Episode):
    """One attempt. It is rewarded when all of its group are in."""

    async def rollout(self, arena: Arena, artifact: Sequence[int], state: EpisodeState) -> EpisodeState:
        await self.call_model("Solver", f"What is {artifact[0]} + {artifact[1]}?", arena, examples=EXAMPLES)
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"answer": read_answer(state.last_completion_text)}


class EnsembleVerificationArena(GroupedArena):
    """``batch_size`` attempts a step, ``n_solvers`` at each question. A majority is at least ``quorum`` of them."""

    def __init__(self, batch_size: int, n_solvers: int = 8, quorum: int = 3, **options: Any) -> None:
        super().__init__("solve", batch_size, n_solvers, **options)
        self.quorum = quorum
        self.add_role(Role("Solver", max_tokens=8))
        self.add_episode("solve", SolveEpisode())

    def draw_artifact(self) -> list[int]:
        return [self.rng.randint(0, 9), self.rng.randint(0, 9)]

    def describe(self, artifact: Sequence[int]) -> str:
        return f"{artifact[0]} + {artifact[1]}"

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """1 for who says what the majority says, -1 for who says something else or nothing that can be read: silence
        must not pay. Without a majority nobody can tell, and all are unscored."""
        attempts = [result.rollout for result in results if result.rollout.error is None]
        agreed = majority([attempt.extras["answer"] for attempt in attempts], self.quorum)
        for attempt in attempts:
            answer, right = attempt.extras["answer"], str(sum(attempt.artifact))
            if agreed is None:
                attempt.leave_unscored("Solver")
            else:
                attempt.rewards["Solver"] = AGREES if answer == agreed else OUTLIER
            attempt.metrics["right/Solver"] = float(answer == right)
            attempt.metrics["abstained/Solver"] = float(answer is None)
            attempt.metrics["majority/found"] = float(agreed is not None)
            if agreed is not None:
                attempt.metrics["majority/right"] = float(agreed == right)
