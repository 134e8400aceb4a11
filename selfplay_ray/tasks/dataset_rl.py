"""A data set of questions with known answers: each is answered several times, and the right replies are reinforced
(reinforcement learning with verifiable rewards; Lambert et al. 2024, Tülu 3, section 6)."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.errors import ConfigError
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.problems import Problem, Row, hold_out, in_passes
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

Score = Callable[[str, Problem], float | Awaitable[float]]
"""What a reply to a problem is worth; best from 0 to 1. Of a class or module, so that it travels to the workers."""


@dataclass(frozen=True, slots=True)
class ByAnswer:
    """The score of a reply to a problem by a function of the reply and the known answer."""

    grade: Callable[[str, str], float | Awaitable[float]]

    def __call__(self, reply: str, problem: Problem) -> float | Awaitable[float]:
        return self.grade(reply, problem["answer"])


def digit_sums() -> list[Row]:
    """Sums of two one-digit numbers, for a small model: a data set that needs no file."""
    return [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10) for b in range(10)]


class AnswerEpisode(Episode):
    """The Answerer is asked a problem, after ``shown``, problems that were answered."""

    def __init__(self, score: Score, shown: Sequence[Problem]) -> None:
        self.score = score
        self.rubric = Rubric([self.correct])
        self.shown = [(problem["prompt"], problem["answer"]) for problem in shown]

    async def rollout(self, arena: Arena, artifact: Problem, state: EpisodeState) -> EpisodeState:
        await self.call_model("Answerer", artifact["prompt"], arena, examples=self.shown)
        return state

    async def correct(self, rollout: Rollout, arena: Arena) -> Mapping[str, float]:
        """What the reply is worth."""
        worth = self.score(rollout.steps[0].completion_text, rollout.artifact)
        return {"Answerer": await worth if inspect.isawaitable(worth) else worth}


class DatasetRLArena(GroupedArena):
    """``batch_size`` replies a step, ``group_size`` to each problem, compared with each other.

    The share ``held_out`` of the questions is for evaluation (if it is 0, evaluations play what is trained on); of the
    others ``shots`` are shown, answered, with every question, and the rest is trained on, pass after pass.

    Raises:
        ConfigError: that leaves nothing to train on.
    """

    def __init__(
        self,
        batch_size: int,
        problems: Sequence[Problem],
        score: Score,
        *,
        group_size: int = 8,
        held_out: float = 0.1,
        shots: int = 0,
        system_prompt: str = "",
        max_tokens: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__("answer", batch_size, group_size, **options)
        ours, reserved = hold_out(problems, held_out)
        ours = in_passes(ours, 0, len(ours), seed=0)  # so that those shown are not the first of a sorted file
        if len(ours) <= shots:
            raise ConfigError(f"of {len(ours)} questions {shots} are shown; that leaves none to train on")
        self.problems = ours[shots:]
        self.held_out = reserved or self.problems
        self.add_role(Role("Answerer", system_prompt, max_tokens=max_tokens))
        self.add_episode("answer", AnswerEpisode(score, ours[:shots]))

    def draw_artifacts(self, count: int) -> list[Problem]:
        return in_passes(self.problems, self._batches * count, count, self.seed)

    def describe(self, artifact: Problem) -> str:
        return f"row {artifact['row']}"

    def get_eval_batch(self, episodes: int) -> list[EpisodeRequest]:
        """What was held out, each problem once, and no more than there is."""
        asked = in_passes(self.held_out, 0, min(episodes, len(self.held_out)), seed=0)
        return [EpisodeRequest("answer", problem, group=f"row {problem['row']}") for problem in asked]
