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
from selfplay_ray.problems import Problem, Row


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """``size`` puzzles of reasoning-gym's kind ``name``, the same wherever they are made. ``options`` are the kind's
    own, as JSON, so that it travels.

    Called with a reply, it is what the kind's verifier makes of the reply's final answer, from 0 to 1.

    Raises:
        ConfigError: reasoning-gym isn't installed, has no such kind, or that has no such options.
    """

    name: str
    size: int
    options: str = "{}"

    @classmethod
    def make(cls, name: str, size: int, options: Mapping[str, Any]) -> ReasoningGym:
        """One whose kind, options and puzzles were tried."""
        gym = cls(name, size, json.dumps(options))
        gym._puzzles()
        return gym

    def rows(self) -> Iterator[Row]:
        """Questions and answers; some kinds accept others than the answer given."""
        puzzles = self._puzzles()
        for index in range(self.size):
            puzzle = puzzles[index]
            yield {"question": puzzle["question"], "answer": str(puzzle["answer"])}

    def __call__(self, reply: str, problem: Problem) -> float:
        puzzles = self._puzzles()
        return float(puzzles.score_answer(final_answer(reply).strip(), puzzles[problem["row"]]))

    def _puzzles(self) -> Any:
        return _puzzles(self.name, self.size, self.options)


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
