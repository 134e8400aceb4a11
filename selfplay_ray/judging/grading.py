"""How good something is, as a number, or whether something is so of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from selfplay_ray.judging.asking import Asking, Shown
from selfplay_ray.judging.fence import fenced
from selfplay_ray.judging.grammar import read_choice, read_score

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena

BEST = 10


@dataclass(frozen=True, slots=True)
class Grade:
    """The votes, each from 0 to 1; None is an abstention."""

    votes: tuple[float | None, ...]

    @property
    def score(self) -> float | None:
        """Their mean, from 0 to 1, over those that could be read; None if none could."""
        read = [vote for vote in self.votes if vote is not None]
        return statistics.fmean(read) if read else None

    @property
    def abstained(self) -> float:
        """The share of votes that couldn't be read."""
        return self.votes.count(None) / len(self.votes)

    def metrics(self) -> dict[str, float]:
        """For ``rollout.metrics``: how many votes couldn't be read, and whether none could."""
        return {"judge/abstained": self.abstained, "judge/no_verdict": float(self.score is None)}


class Example(NamedTuple):
    """A text, what it is ``about``, and the verdict on it, as the judge is to give it: "9", "yes"."""

    about: str
    text: str
    verdict: str


class GradingJudge:
    """Grades a text by ``criterion``, a question about it: "How clear is this summary?".

    ``examples`` show a small model what a verdict looks like; a judge that reasons isn't shown them.
    ``asking`` are settings of :class:`~selfplay_ray.judging.asking.Asking`: votes, temperature, reasoning, max_tokens.
    """

    def __init__(self, criterion: str, examples: Sequence[Example] = (), **asking: Any) -> None:
        scale = f"from 0 (worst) to {BEST} (best)"
        self._asking = Asking(
            criterion, f"a number {scale} and nothing else", f"Score: and a number {scale}", **asking
        )
        self._examples = _shown(examples)

    async def grade(self, arena: Arena, text: str, about: str = "") -> Grade:
        """How good ``text`` is; ``about`` is what it answers, in the task's own words.

        Raises:
            InferenceError: the model could not answer.
        """
        replies = await self._asking.replies(arena, about, fenced(text), self._examples)
        scores = [read_score(reply, BEST) for reply in replies]
        return Grade(tuple(None if score is None else score / BEST for score in scores))


class YesNoJudge:
    """Answers ``criterion``, a question about a text: "Is every step of this proof valid?".

    ``examples`` show a small model what a verdict looks like; a judge that reasons isn't shown them.
    ``asking`` are settings of :class:`~selfplay_ray.judging.asking.Asking`: votes, temperature, reasoning, max_tokens.
    """

    def __init__(self, criterion: str, examples: Sequence[Example] = (), **asking: Any) -> None:
        self._asking = Asking(criterion, "one word: yes or no", "Verdict: yes or Verdict: no", **asking)
        self._examples = _shown(examples)

    async def check(self, arena: Arena, text: str, about: str = "") -> Grade:
        """Whether it is so of ``text``: 1 is yes, 0 is no. ``about`` is what it answers, in the task's own words.

        Raises:
            InferenceError: the model could not answer.
        """
        replies = await self._asking.replies(arena, about, fenced(text), self._examples)
        choices = [read_choice(reply, ["yes", "no"]) for reply in replies]
        return Grade(tuple(None if choice is None else float(choice == "yes") for choice in choices))


def _shown(examples: Sequence[Example]) -> list[Shown]:
    return [Shown(about, fenced(text), verdict) for about, text, verdict in examples]
