"""Sums of two one-digit numbers: what a small model nearly knows, and has to learn to just say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from selfplay_ray.arena import Arena
from selfplay_ray.episode import EpisodeState, SingleTurnEpisode
from selfplay_ray.grouped_arena import GroupedArena
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import Role, Rollout

NUMBER = re.compile(r"-?\d+")
NUMBER_SAID, LAST_RIGHT, EXACT = 0.1, 0.4, 1.0


class Sum(NamedTuple):
    left: int
    right: int

    def __str__(self) -> str:
        return f"{self.left} + {self.right}"


def sum_reward(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Graded, so that a small model has somewhere to start: 0.1 for a number, 0.4 for ending with the right one,
    1 for nothing beyond the answer or the equation."""
    text, asked = rollout.steps[0].completion_text, Sum(*rollout.artifact)
    answer, numbers = asked.left + asked.right, NUMBER.findall(text)
    if not numbers or int(numbers[-1]) != answer:
        return {"Adder": NUMBER_SAID if numbers else 0.0}
    exact = text.strip().rstrip(".").removeprefix(f"{asked} = ") == str(answer)
    return {"Adder": EXACT if exact else LAST_RIGHT}


class DigitSumEpisode(SingleTurnEpisode):
    rubric = Rubric([sum_reward])

    def get_initial_role(self, artifact: Sequence[int], state: EpisodeState) -> str:
        return "Adder"

    def get_initial_prompt(self, arena: Arena, artifact: Sequence[int], state: EpisodeState) -> str:
        return f"What is {Sum(*artifact)}?"


class DigitSumsArena(GroupedArena):
    """``batch_size`` answers a step, ``group_size`` to each sum, compared with each other."""

    def __init__(self, batch_size: int, group_size: int = 8, **options: Any) -> None:
        super().__init__("add", batch_size, group_size, **options)
        self.add_role(Role("Adder", max_tokens=12))
        self.add_episode("add", DigitSumEpisode())

    def draw_artifact(self) -> list[int]:
        return [self.rng.randint(0, 9), self.rng.randint(0, 9)]

    def describe(self, artifact: Sequence[int]) -> str:
        return str(Sum(*artifact))
