"""How a judge is asked: without a role, with chance keyed by the question, and once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfplay_ray.errors import ConfigError
from selfplay_ray.judging.fence import NOTE

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena

SHORT, LONG = 8, 512
"""Tokens for a verdict alone, and for one after some thought."""


@dataclass(slots=True)
class Asking:
    """How a judge's question is put, and what was answered before.

    ``criterion`` is the question; a verdict alone is asked for as ``brief`` ("one word: yes or no"), one after some
    thought as ``line`` ("Verdict: yes or Verdict: no"), which is what ``reasoning`` switches to. ``votes`` replies are
    sampled at ``temperature``; one that isn't given is 0 for one vote, 0.7 for more. ``max_tokens`` bounds a reply.

    The sample of a vote is keyed by the arena's seed, the question and the vote's number, whoever asks: the same
    question gets the same answer, from the ``remembered`` newest or from the model.

    Raises:
        ConfigError: no votes; or several at temperature 0, which would be the same one.
    """

    criterion: str
    brief: str
    line: str
    votes: int = 1
    temperature: float | None = None
    reasoning: bool = False
    max_tokens: int | None = None
    remembered: int = 4096
    _answers: OrderedDict[tuple[int, str, int], str] = field(
        default_factory=OrderedDict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise ConfigError(f"a judge with {self.votes} votes decides nothing; give it 1 or more")
        if self.temperature is None:
            self.temperature = 0.0 if self.votes == 1 else 0.7
        if self.temperature <= 0 and self.votes > 1:
            raise ConfigError(
                f"{self.votes} votes at temperature 0 are one vote; give the judge a temperature above 0"
            )

    async def replies(self, arena: Arena, about: str, shown: str) -> list[str]:
        """One reply for each vote on what is ``shown``, fenced; ``about`` comes first.

        Raises:
            InferenceError: the model could not answer.
        """
        form = (
            f"Think it through in a few sentences, then end with a line of its own: {self.line}."
            if self.reasoning
            else f"Answer with {self.brief}."
        )
        question = "\n\n".join(filter(None, [about, NOTE, shown, f"{self.criterion} {form}"]))
        return [await self._reply(arena, question, vote) for vote in range(self.votes)]

    async def _reply(self, arena: Arena, question: str, vote: int) -> str:
        key = arena.seed, question, vote
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        limit = self.max_tokens or (LONG if self.reasoning else SHORT)
        answer = await arena.ask(question, f"vote {vote}", temperature=self.temperature, max_tokens=limit)
        self._answers[key] = answer.text
        while len(self._answers) > self.remembered:
            self._answers.popitem(last=False)
        return answer.text
