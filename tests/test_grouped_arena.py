"""Batches of several episodes on one artifact."""

from __future__ import annotations

import pytest

from selfplay_ray import Arena, Episode, GroupedArena, GRPOCredit
from selfplay_ray.credit import ConstantCredit
from selfplay_ray.episode import EpisodeState


class Silent(Episode):
    async def rollout(self, arena: Arena, artifact: object, state: EpisodeState) -> EpisodeState:
        return state


class Dice(GroupedArena):
    def draw_artifact(self) -> list[int]:
        return [self.rng.randint(1, 6), self.rng.randint(1, 6)]

    def describe(self, artifact: list[int]) -> str:
        return f"dice {artifact[0]} {artifact[1]}"


class Passes(GroupedArena):
    def draw_artifacts(self, count: int) -> list[str]:
        return [f"row {self._batches * count + index}" for index in range(count)]


def arena_of(kind: type[GroupedArena], batch_size: int, group_size: int) -> GroupedArena:
    arena = kind("roll", batch_size, group_size)
    arena.add_episode("roll", Silent())
    return arena


def test_a_group_is_about_one_artifact_and_named_after_it():
    batch = arena_of(Dice, 6, 3).next_batch()
    assert [request.episode_type for request in batch] == ["roll"] * 6
    first, second = batch[0].artifact, batch[3].artifact
    assert [request.artifact for request in batch] == [first] * 3 + [second] * 3
    names = [f"0: dice {first[0]} {first[1]}", f"1: dice {second[0]} {second[1]}"]
    assert [request.group for request in batch] == [names[0]] * 3 + [names[1]] * 3


def test_a_batch_that_is_no_multiple_has_fewer_on_its_last():
    arena = arena_of(Passes, 5, 3)
    assert [request.artifact for request in arena.next_batch()] == ["row 0"] * 3 + ["row 1"] * 2
    assert [request.artifact for request in arena.next_batch()] == ["row 2"] * 3 + ["row 3"] * 2


def test_chance_is_the_batchs():
    drawn = [[request.artifact for request in arena_of(Dice, 6, 1).next_batch()] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_credit_is_by_comparison_unless_said_otherwise():
    credit = Dice("roll", 2, 2).credit_assigner
    assert isinstance(credit, GRPOCredit)
    assert credit.normalize
    assert isinstance(Dice("roll", 2, 2, credit_assigner=ConstantCredit()).credit_assigner, ConstantCredit)


def test_what_is_missing_is_said():
    with pytest.raises(NotImplementedError, match=r"GroupedArena must override draw_artifact\(\)"):
        arena_of(GroupedArena, 2, 2).next_batch()
