"""Generator, Critic, Reviser: a draft, what is wrong with it, a better draft, and so on for some rounds.

Madaan et al. 2023, Self-Refine, with every stage a role that is trained. A judge grades each draft. Generator and
Reviser earn the grade of the last one, the Critic what a round has improved on average. Whose grade can't be read is
unscored: writers without a last grade, a Critic without a round that has both its grades.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.judging import Example, Grade, GradingJudge
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Role, Rollout

GENERATOR, CRITIC, REVISER = "Generator", "Critic", "Reviser"
TOPICS = (
    "rain", "bread", "the moon", "a bicycle", "sleep", "a library", "ice", "bees", "a bridge", "music",
    "a map", "salt", "shadows", "a clock", "wind", "money", "a doctor", "the sea", "a garden", "paper",
)  # fmt: skip
EXAMPLE, DRAFT = "fire", "Fire is hot."
CRITICISM = "It is true but short: say what fire does."
REVISED = "Fire is burning wood that gives us light and keeps us warm."


def task(topic: str) -> str:
    return f"Explain in one sentence to a child: {topic}"


def criticize(topic: str, draft: str) -> str:
    return f"{task(topic)}\nDraft: {draft}\nWhat should be better?"


def revise(topic: str, draft: str, criticism: str) -> str:
    return f"{task(topic)}\nDraft: {draft}\nCriticism: {criticism}\nWrite the better sentence."


CRITERION = "How well does this explain it to a child?"
JUDGED = [Example(task(EXAMPLE), REVISED, "9"), Example(task(EXAMPLE), DRAFT, "3")]
"""What a judge is shown of how to judge."""


class RefineLoopEpisode(Episode):
    """``rounds`` of criticism and revision after the first draft."""

    def __init__(self, judge: GradingJudge, rounds: int) -> None:
        self.judge, self.rounds = judge, rounds
        self.rubric = Rubric([self.quality])

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        draft = await self.ask(arena, GENERATOR, task(EXAMPLE), DRAFT, task(artifact))
        for _ in range(self.rounds):
            example = criticize(EXAMPLE, DRAFT)
            criticism = await self.ask(arena, CRITIC, example, CRITICISM, criticize(artifact, draft))
            example = revise(EXAMPLE, DRAFT, CRITICISM)
            draft = await self.ask(arena, REVISER, example, REVISED, revise(artifact, draft, criticism))
        return state

    async def ask(self, arena: Arena, role: str, example: str, answer: str, question: str) -> str:
        """What ``role`` answers ``question``, after an example of how to."""
        reply = await self.call_model(role, question, arena, examples=[(example, answer)])
        return reply.text.strip()

    async def quality(self, rollout: Rollout, arena: Arena) -> dict[str, float | None]:
        """The last draft's grade for those who write, the mean improvement of a round for who criticizes."""
        drafts = [step.completion_text.strip() for step in rollout.steps if step.role_id != CRITIC]
        grades = [await self.grade(arena, rollout.artifact, draft) for draft in drafts]
        scores = [grade.score for grade in grades]
        rollout.metrics["judge/abstained"] = statistics.fmean(grade.abstained for grade in grades)
        rollout.metrics["judge/no_verdict"] = statistics.fmean(score is None for score in scores)
        rounds = itertools.pairwise(scores)
        gains = [after - before for before, after in rounds if before is not None and after is not None]
        gained = statistics.fmean(gains) if gains else None
        return {GENERATOR: scores[-1], REVISER: scores[-1], CRITIC: gained}

    async def grade(self, arena: Arena, topic: str, draft: str) -> Grade:
        """The judge's, but for an empty draft, about which there is nothing to ask."""
        return await self.judge.grade(arena, draft, task(topic)) if draft else Grade((0.0,))


class RefineLoopArena(GroupedArena):
    """``batch_size`` episodes a step, ``group_size`` about each topic, compared with each other."""

    def __init__(
        self, batch_size: int, judging: GradingJudge, rounds: int = 1, group_size: int = 8, **options: Any
    ) -> None:
        super().__init__("refine", batch_size, group_size, **options)
        for role in (GENERATOR, CRITIC, REVISER):
            self.add_role(Role(role, max_tokens=32))
        self.add_episode("refine", RefineLoopEpisode(judging, rounds))

    def draw_artifact(self) -> str:
        return self.rng.choice(TOPICS)
