"""Agents of different styles answer the same questions, everyone against everyone; ratings say who is how good.

A match is judged, in both orders, and zero-sum. Its result is the reward, which role-conditioned baselines make
relative to what the agent is used to. Elo ratings (:mod:`selfplay_ray.ratings`) go on from batch to batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypedDict

from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact
from selfplay_ray.credit import RAECredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.judging import KnownPair, PairwiseJudge
from selfplay_ray.ratings import elo_update
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, GenerateResult, Role, Rollout

STYLES = {
    "Teacher": "You explain things simply, with an example.",
    "Scientist": "You answer precisely, with the cause.",
    "Friend": "You answer warmly, as a friend would.",
    "Poet": "You answer with a picture in words.",
    "Minimalist": "You answer in as few words as you can.",
    "Skeptic": "You say what is known and what is not.",
}
QUESTIONS = (
    "Why is the sky blue?", "Why do we sleep?", "What is money?", "How do birds fly?", "Why is the sea salty?",
    "What is a shadow?", "Why do leaves fall?", "What makes a good friend?", "How does soap clean?",
    "Why does ice float?", "What is an echo?", "How do bees make honey?", "Why do we have seasons?",
    "What is a rainbow?", "Why do we yawn?", "How does a bicycle stay up?",
)  # fmt: skip
CRITERION = "Who answers the question better, A or B?"
JUDGED = [
    KnownPair("Why does it rain?", "Drops of water in a cloud grow until they are too heavy.", "I like rain.")
]
"""What a judge is shown of how to judge."""
INITIAL_RATING = 1000.0
RATINGS = "ratings"


class Pairing(TypedDict):
    """What a match is played on."""

    question: str
    first: str
    second: str


class MatchEpisode(Episode):
    """Two agents answer one question; ``judge`` says who does it better."""

    def __init__(self, judge: PairwiseJudge) -> None:
        self.judge = judge
        self.rubric = Rubric([self.result])

    async def rollout(self, arena: Arena, artifact: Pairing, state: EpisodeState) -> EpisodeState:
        for agent in (artifact["first"], artifact["second"]):
            await self.call_model(agent, artifact["question"], arena)
        return state

    async def result(self, rollout: Rollout, arena: Arena) -> dict[str, float | None]:
        """What the judge gives the first, and takes from the second; both are unscored where it can't be read."""
        first, second = (step.completion_text.strip() or "(no answer)" for step in rollout.steps)
        verdict = await self.judge.compare(arena, first, second, rollout.artifact["question"])
        rollout.metrics.update(verdict.metrics())
        rollout.extras["score"] = verdict.score
        return verdict.rewards(rollout.artifact["first"], rollout.artifact["second"])


class RoundRobinEpisode(Episode):
    """A match of every two of ``agents`` about one question."""

    def __init__(self, agents: Sequence[str]) -> None:
        self.agents = agents

    async def rollout(self, arena: Arena, artifact: str, state: EpisodeState) -> EpisodeState:
        pairings = [
            Pairing(question=artifact, first=first, second=second)
            for first, second in itertools.combinations(self.agents, 2)
        ]
        matches = [EpisodeRequest("match", pairing) for pairing in pairings]
        state.child_results = await arena.generate_rollouts(matches)
        return state


class EloArena(Arena):
    """``batch_size`` round robins a step, among the first ``agents`` styles. The ratings are in its stores, and so in
    every checkpoint."""

    def __init__(
        self, batch_size: int, judging: PairwiseJudge, agents: int = 4, k_factor: float = 16.0, **options: Any
    ) -> None:
        options.setdefault("credit_assigner", RAECredit())
        super().__init__(batch_size=batch_size, **options)
        self.k_factor = k_factor
        names = list(STYLES)[:agents]
        ratings = self.add_store(RATINGS)
        for name in names:
            self.add_role(Role(name, f"{STYLES[name]} Answer in one sentence.", max_tokens=32))
            ratings.add(Artifact(name, INITIAL_RATING))
        self.add_episode("round_robin", RoundRobinEpisode(names))
        self.add_episode("match", MatchEpisode(judging))

    def get_batch(self) -> list[EpisodeRequest]:
        return [EpisodeRequest("round_robin", self.rng.choice(QUESTIONS)) for _ in range(self.batch_size)]

    def get_eval_batch(self, episodes: int) -> list[EpisodeRequest]:
        """Every round robin is an observation of its own: ratings are no rewards."""
        requests = super().get_eval_batch(episodes)
        return [replace(request, group=f"{index}") for index, request in enumerate(requests)]

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """Rate the agents by the matches, in order; an abstention changes no rating."""
        for result in results:
            for match in result.children:
                if match.rollout.extras.get("score") is not None:
                    self.rate(match.rollout.artifact, match.rollout.extras["score"])
            result.rollout.metrics.update({f"elo/{name}": value for name, value in self.ratings().items()})

    def ratings(self) -> dict[str, float]:
        """Everybody's, as they are now."""
        return {artifact.id: artifact.data for artifact in self.stores[RATINGS]}

    def rate(self, pairing: Pairing, score: float) -> None:
        """Move both ratings by a match that the judge scored from -1 to 1."""
        first, second = pairing["first"], pairing["second"]
        before = self.ratings()
        after = elo_update(before[first], before[second], (1 + score) / 2, self.k_factor)
        for name, rating in zip((first, second), after, strict=True):
            self.stores[RATINGS].add(Artifact(name, rating))
