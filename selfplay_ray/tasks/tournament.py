"""Tournament selection: candidates are proposed, every two are compared, and how strong that makes a candidate is its
reward. Who wins is an example to those who come next: evolution without explicit mutation.

Strengths are Bradley and Terry's (:func:`selfplay_ray.ratings.bradley_terry`), which unlike Elo's don't depend on the
order of the duels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from selfplay_ray.arena import Arena
from selfplay_ray.artifacts import Artifact
from selfplay_ray.credit import GRPOCredit
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.judging import KnownPair, PairwiseJudge
from selfplay_ray.ratings import Match, bradley_terry
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, GenerateResult, Role, Rollout

PRODUCTS = (
    "a bakery", "a bicycle shop", "a library", "a swimming pool", "a coffee house", "a toy shop", "a zoo",
    "a flower shop", "a train line", "a pencil factory", "a cinema", "a hotel by the sea", "a hat maker",
    "a music school", "a farm", "a night bus",
)  # fmt: skip
FIRST_WINNER = ("an umbrella shop", "Let it rain: we keep you dry.")
CRITERION = "Which slogan is better, A or B?"
PROPOSER, WINNERS = "Proposer", "winners"


def wanted(product: str) -> str:
    return f"Write a slogan for {product}."


JUDGED = [KnownPair(wanted("a shoe shop"), "We care where you go.", "Shoes are things for feet, and so on.")]
"""What a judge is shown of how to judge."""


class Contest(TypedDict):
    """A product, and an example: another product and its slogan."""

    product: str
    example: Sequence[str]


class Duel(TypedDict):
    """Two slogans for a product, and which candidates' they are."""

    product: str
    slogans: Sequence[str]
    candidates: Sequence[int]


class ProposalEpisode(Episode):
    """A candidate. What it is worth is known when the tournament is over: :meth:`TournamentArena.score_group`."""

    async def rollout(self, arena: Arena, artifact: Contest, state: EpisodeState) -> EpisodeState:
        product, slogan = artifact["example"]
        example = (wanted(product), slogan)
        await self.call_model(PROPOSER, wanted(artifact["product"]), arena, examples=[example])
        return state

    def get_extras(self, state: EpisodeState) -> Mapping[str, Any]:
        return {"slogan": state.last_completion_text.strip()}


class DuelEpisode(Episode):
    """``judge`` compares two candidates; nobody else speaks."""

    def __init__(self, judge: PairwiseJudge) -> None:
        self.judge = judge
        self.rubric = Rubric([self.verdict])

    async def rollout(self, arena: Arena, artifact: Duel, state: EpisodeState) -> EpisodeState:
        return state

    async def verdict(self, rollout: Rollout, arena: Arena) -> dict[str, float]:
        """Rewards nobody here; leaves the first's score, from -1 to 1 and None for an abstention, among the extras."""
        first, second = rollout.artifact["slogans"]
        verdict = await self.judge.compare(arena, first, second, wanted(rollout.artifact["product"]))
        rollout.metrics.update(verdict.metrics())
        rollout.extras["score"] = verdict.score
        return {}


class TournamentEpisode(Episode):
    """``candidates`` proposals, and a duel of every two that say anything, and not the same."""

    def __init__(self, candidates: int) -> None:
        self.candidates = candidates

    async def rollout(self, arena: Arena, artifact: Contest, state: EpisodeState) -> EpisodeState:
        proposals = await arena.generate_rollouts([EpisodeRequest("proposal", artifact)] * self.candidates)
        slogans = [proposal.rollout.extras.get("slogan") for proposal in proposals]
        duels = [
            Duel(product=artifact["product"], slogans=[a, b], candidates=[i, j])
            for (i, a), (j, b) in itertools.combinations(enumerate(slogans), 2)
            if a and b and a != b
        ]
        await arena.generate_rollouts([EpisodeRequest("duel", duel) for duel in duels])
        return state


class TournamentArena(Arena):
    """``batch_size`` tournaments a step, whose candidates are compared with each other."""

    def __init__(self, batch_size: int, judging: PairwiseJudge, candidates: int = 4, **options: Any) -> None:
        options.setdefault("credit_assigner", GRPOCredit(normalize=True))
        super().__init__(batch_size=batch_size, **options)
        self.add_role(Role(PROPOSER, max_tokens=16))
        self.add_store(WINNERS).add(Artifact(FIRST_WINNER[0], FIRST_WINNER[1]))
        self.add_episode("tournament", TournamentEpisode(candidates))
        self.add_episode("proposal", ProposalEpisode())
        self.add_episode("duel", DuelEpisode(judging))

    def get_batch(self) -> list[EpisodeRequest]:
        products = self.rng.choices(PRODUCTS, k=self.batch_size)
        return [EpisodeRequest("tournament", self.contest(product)) for product in products]

    def get_eval_batch(self, episodes: int) -> list[EpisodeRequest]:
        """Every tournament is an observation of its own."""
        requests = super().get_eval_batch(episodes)
        return [replace(request, group=f"{index}") for index, request in enumerate(requests)]

    def contest(self, product: str) -> Contest:
        """With the winner for another product as an example, so that it can't be repeated."""
        winners = [[winner.id, winner.data] for winner in self.stores[WINNERS] if winner.id != product]
        return Contest(product=product, example=self.rng.choice(winners))

    def score_group(self, results: Sequence[GenerateResult]) -> None:
        """Give every candidate its reward, and keep those that are better than an average one and than all others."""
        for result in results:
            proposals = [
                child.rollout for child in result.children if child.rollout.episode_type == "proposal"
            ]
            duels = [child.rollout for child in result.children if child.rollout.episode_type == "duel"]
            matches = [match for duel in duels if (match := match_of(duel))]
            strengths = bradley_terry(len(proposals), matches)
            unread = {player for duel in duels for player in duel.artifact["candidates"]}
            unread -= {player for match in matches for player in (match.first, match.second)}
            for number, (proposal, strength) in enumerate(zip(proposals, strengths, strict=True)):
                reward(proposal, None if number in unread else strength)
            strength, winner = max(zip(strengths, proposals, strict=True), key=lambda pair: pair[0])
            if strength > 0:  # else nobody has won, and who has failed or said nothing may be the first
                self.stores[WINNERS].add(Artifact(winner.artifact["product"], winner.extras["slogan"]))


def match_of(duel: Rollout) -> Match | None:
    """The result of a duel; None where the judge abstained, or something failed."""
    if duel.extras.get("score") is None:
        return None
    first, second = duel.artifact["candidates"]
    return Match(first, second, (1 + duel.extras["score"]) / 2)


def reward(proposal: Rollout, strength: float | None) -> None:
    """From -1 to 1, its chances of beating an average candidate against those of losing: tanh(strength / 2), which is
    0 for who had nobody to meet. None is for a candidate none of whose duels could be read: it is unscored. One that
    says nothing has *forfeited*: -1, from which the others gain nothing."""
    if proposal.error is not None:
        return
    forfeited = not proposal.extras["slogan"]
    proposal.metrics[f"forfeited/{PROPOSER}"] = float(forfeited)
    if strength is None:
        proposal.leave_unscored(PROPOSER)
    else:
        proposal.rewards[PROPOSER] = -1.0 if forfeited else math.tanh(strength / 2)
