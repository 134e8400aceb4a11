"""Which of two is better: asked in both orders, so that a judge's liking for a place cancels out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfplay_ray.judging.asking import Asking, Shown
from selfplay_ray.judging.fence import fenced, fenced_turns
from selfplay_ray.judging.grammar import read_choice
from selfplay_ray.judging.known_pairs import KnownPair

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena

Vote = float | None
"""1 for the first of the two, -1 for the second, 0 for a tie; None is an abstention."""

WORTH = {"A": 1.0, "B": -1.0, "tie": 0.0}


@dataclass(frozen=True, slots=True)
class PairwiseVerdict:
    """The votes on two: those of judges to whom the first was shown as A, and those to whom it was shown as B."""

    as_a: tuple[Vote, ...]
    as_b: tuple[Vote, ...]

    @property
    def score(self) -> float | None:
        """From 1, the first is better, to -1: the mean of both orders' means over votes that could be read. None, an
        abstention, where an order has no such vote, because then its liking for a place is not cancelled."""
        orders = self._read()
        return statistics.fmean(map(statistics.fmean, orders)) if all(orders) else None

    @property
    def winner(self) -> Literal["first", "second", "tie"] | None:
        """Who has the higher score; None is an abstention."""
        if self.score is None:
            return None
        return "first" if self.score > 0 else "second" if self.score < 0 else "tie"

    @property
    def abstained(self) -> float:
        """The share of votes that couldn't be read."""
        votes = self.as_a + self.as_b
        return votes.count(None) / len(votes)

    @property
    def orders_agree(self) -> float | None:
        """1 if both orders favour the same of the two (or neither), 0 if not, None without a vote of each."""
        orders = self._read()
        if not all(orders):
            return None
        a, b = (sum(votes) for votes in orders)
        return float((a > 0) == (b > 0) and (a < 0) == (b < 0))

    def rewards(self, first: str, second: str) -> dict[str, float | None]:
        """What role ``first`` gets, and role ``second`` loses; None for both in an abstention."""
        return {first: self.score, second: None if self.score is None else -self.score}

    def metrics(self) -> dict[str, float]:
        """For ``rollout.metrics``: how many votes couldn't be read, and whether that left no verdict."""
        agree = {} if self.orders_agree is None else {"judge/orders_agree": self.orders_agree}
        return {"judge/abstained": self.abstained, "judge/no_verdict": float(self.score is None), **agree}

    def _read(self) -> list[list[float]]:
        """Each order's votes that could be read."""
        return [[vote for vote in votes if vote is not None] for votes in (self.as_a, self.as_b)]


class PairwiseJudge:
    """Says which of two is better by ``criterion``, a question about A and B: "Who argued better, A or B?".

    ``examples`` show a small model what a verdict looks like, each in both orders, so that they favour no place; a
    judge that reasons isn't shown them.
    ``asking`` are settings of :class:`~selfplay_ray.judging.asking.Asking`: votes (of each order), temperature,
    reasoning, max_tokens.
    """

    def __init__(self, criterion: str, examples: Sequence[KnownPair] = (), **asking: Any) -> None:
        self._asking = Asking(
            criterion, "one word: A, B or tie", "Verdict: A, Verdict: B or Verdict: tie", **asking
        )
        self._texts = _in_both_orders(examples, _two_texts)
        self._players = _in_both_orders(examples, _two_players)

    async def compare(self, arena: Arena, first: str, second: str, about: str = "") -> PairwiseVerdict:
        """Which of two texts is better; ``about`` is what both answer, in the task's own words.

        Raises:
            InferenceError: the model could not answer.
        """
        return await self._verdict(
            arena, about, _two_texts(first, second), _two_texts(second, first), self._texts
        )

    async def compare_players(
        self, arena: Arena, transcript: Sequence[tuple[str, str]], first: str, second: str, about: str = ""
    ) -> PairwiseVerdict:
        """Which of two players of one ``transcript`` (who spoke, and what) is better. They change names between the
        orders, not places: what they said stays in its order.

        Raises:
            InferenceError: the model could not answer.
        """
        orders = ({first: "A", second: "B"}, {first: "B", second: "A"})
        as_a, as_b = (
            fenced_turns([(names.get(who, who), said) for who, said in transcript]) for names in orders
        )
        return await self._verdict(arena, about, as_a, as_b, self._players)

    async def _verdict(
        self, arena: Arena, about: str, as_a: str, as_b: str, examples: Sequence[Shown]
    ) -> PairwiseVerdict:
        return PairwiseVerdict(
            tuple(await self._votes(arena, about, as_a, 1.0, examples)),
            tuple(await self._votes(arena, about, as_b, -1.0, examples)),
        )

    async def _votes(
        self, arena: Arena, about: str, shown: str, sign: float, examples: Sequence[Shown]
    ) -> list[Vote]:
        replies = await self._asking.replies(arena, about, shown, examples)
        choices = [read_choice(reply, list(WORTH)) for reply in replies]
        return [None if choice is None else sign * WORTH[choice] for choice in choices]


def _in_both_orders(pairs: Sequence[KnownPair], show: Callable[[str, str], str]) -> list[Shown]:
    return [
        example
        for pair in pairs
        for example in (
            Shown(pair.about, show(pair.better, pair.worse), "A"),
            Shown(pair.about, show(pair.worse, pair.better), "B"),
        )
    ]


def _two_texts(a: str, b: str) -> str:
    return f"A:\n{fenced(a)}\n\nB:\n{fenced(b)}"


def _two_players(a: str, b: str) -> str:
    return fenced_turns([("A", a), ("B", b)])
