"""How a judge is asked: without a role, with chance keyed by the question, and once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from selfplay_ray.errors import ConfigError
from selfplay_ray.judging.fence import NOTE
from selfplay_ray.types import Message, as_turns

if TYPE_CHECKING:
    from selfplay_ray.arena import Arena

SHORT, LONG = 8, 512
"""Tokens for a verdict alone, and for one after some thought."""


class Shown(NamedTuple):
    """What a judge is shown, fenced, what that is ``about``, and the verdict on it."""

    about: str
    text: str
    verdict: str


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
    _answers: OrderedDict[tuple[int, tuple[str, ...], int], str] = field(
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

    async def replies(
        self, arena: Arena, about: str, shown: str, examples: Sequence[Shown] = ()
    ) -> list[str]:
        """One reply for each vote on what is ``shown``, fenced; ``about`` comes first.

        ``examples`` are earlier turns, from which a small model learns what a verdict looks like. One that is to think
        first isn't shown any, because they don't.

        Raises:
            InferenceError: the model could not answer.
        """
        shown_before = () if self.reasoning else examples
        turns = as_turns((self._question(one.about, one.text), one.verdict) for one in shown_before)
        turns.append(Message(role="user", content=self._question(about, shown)))
        return [await self._reply(arena, turns, vote) for vote in range(self.votes)]

    def _question(self, about: str, shown: str) -> str:
        form = (
            f"Think it through in a few sentences, then end with a line of its own: {self.line}."
            if self.reasoning
            else f"Answer with {self.brief}."
        )
        return "\n\n".join(filter(None, [about, NOTE, shown, f"{self.criterion} {form}"]))

    async def _reply(self, arena: Arena, turns: Sequence[Message], vote: int) -> str:
        key = arena.seed, tuple(turn["content"] for turn in turns), vote
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        limit = self.max_tokens or (LONG if self.reasoning else SHORT)
        answer = await arena.ask(turns, f"vote {vote}", temperature=self.temperature, max_tokens=limit)
        self._answers[key] = answer.text
        while len(self._answers) > self.remembered:
            self._answers.popitem(last=False)
        return answer.text
