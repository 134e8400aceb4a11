"""reasoning-gym's procedural tasks (Stojanovski et al. 2025, arXiv:2505.24760): made up as they are needed, each scored
by a verifier of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from selfplay_ray.answers import final_answer
from selfplay_ray.config_sources import suggestion
from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.textarena_game import Chance
from selfplay_ray.problems import Problem, Row

UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What verifiers raise for an answer that they can't read: prime_factorization for any text, boxnet for a number."""


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """``size`` puzzles of reasoning-gym's kind ``name``, the same wherever they are made. ``options`` are the kind's
    own, as JSON, so that it travels.

    Called with a reply, it is what the kind's verifier makes of the reply's final answer, from 0 to 1.

    Raises:
        ConfigError: reasoning-gym isn't installed, has no such kind, or that has no such options or no answers.
    """

    name: str
    size: int
    options: str = "{}"

    @classmethod
    def make(cls, name: str, size: int, options: Mapping[str, Any]) -> ReasoningGym:
        """One that was tried: its verifier accepts the answer to its first puzzle."""
        gym = cls(name, size, json.dumps(options))
        puzzle = gym._puzzle(0)
        if puzzle["answer"] is None or gym._score(str(puzzle["answer"]), puzzle) < 1:
            raise ConfigError(
                f"reasoning-gym's {name} gives no answer that its own verifier accepts, so it can't be checked"
            )
        return gym

    def rows(self) -> Iterator[Row]:
        """Questions and answers; some kinds accept others than the answer given."""
        for index in range(self.size):
            puzzle = self._puzzle(index)
            yield {"question": puzzle["question"], "answer": str(puzzle["answer"])}

    def __call__(self, reply: str, problem: Problem) -> float:
        return self._score(final_answer(reply).strip(), self._puzzle(problem["row"]))

    def _puzzle(self, index: int) -> Mapping[str, Any]:
        with Chance(index).in_place():  # list_functions, for one, draws from the global random state
            return _puzzles(self.name, self.size, self.options)[index]  # type: ignore[no-any-return]

    def _score(self, answer: str, puzzle: Mapping[str, Any]) -> float:
        try:
            return float(_puzzles(self.name, self.size, self.options).score_answer(answer, puzzle))
        except UNREADABLE:
            return 0.0


@functools.cache
def _puzzles(name: str, size: int, options: str) -> Any:
    gym = _reasoning_gym()
    known = gym.factory.DATASETS
    if name not in known:
        raise ConfigError(f"reasoning-gym has no {name!r}{suggestion(name, known)}")
    given = {"seed": 0, **json.loads(options)}
    try:
        return gym.create_dataset(name, size=size, **given)
    except (
        TypeError,
        AssertionError,
        ValueError,
    ) as error:  # how its configurations refuse what they are given
        raise ConfigError(f"reasoning-gym's {name} can't be made with the options {given}: {error}") from None


def _reasoning_gym() -> ModuleType:
    try:
        import reasoning_gym
        import reasoning_gym.factory
    except ModuleNotFoundError as error:
        if error.name != "reasoning_gym":
            raise
        raise ConfigError(
            "reasoning-gym isn't installed; it comes with an extra: pip install 'selfplay-ray[reasoning-gym]'"
        ) from None
    return reasoning_gym  # type: ignore[no-any-return]
