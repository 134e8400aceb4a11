"""The coordinator: how many are admitted, when a group is credited, and what a failure costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray import (
    Arena,
    Artifact,
    Completion,
    Episode,
    EpisodeRequest,
    PolicySpan,
    RAECredit,
    Role,
    Rollout,
    RunConfig,
    Step,
)
from selfplay_ray.errors import ConfigError, CreditError, ErrorBudgetExceeded
from selfplay_ray.scheduling.coordinator import Coordinator, CreditedGroup
from selfplay_ray.scheduling.messages import Assignment, Finished, Report, Spawn


class Silent(Episode):
    """Stands for its type; what it played is reported by the tests."""

    async def rollout(self, arena, artifact, state):
        return state


class Numbers(Arena):
    """Batch after batch of episodes; ``group_of`` names the group of each."""

    group_of: Callable[[int], str | None] = staticmethod(lambda index: None)

    def get_batch(self):
        return [EpisodeRequest("play", i, group=self.group_of(i)) for i in range(self.batch_size)]


def coordinator_of(group_of: Callable[[int], str | None] | None = None, **config: float) -> Coordinator:
    arena = Numbers(credit_assigner=RAECredit(decay=0.5))
    arena.add_role(Role("A"))
    for kind in ("play", "other"):
        arena.add_episode(kind, Silent())
    if group_of:
        arena.group_of = group_of
    settings = {"num_steps": 3, "batch_size": 2, "max_staleness": 0, **config}
    coordinator = Coordinator(arena, RunConfig.model_validate(settings))
    coordinator.scheduler.add_worker("w")
    return coordinator


def admitted(coordinator: Coordinator) -> list[Assignment]:
    orders = coordinator.take_orders()
    return orders["w"].assignments if "w" in orders else []


def played(assignment: Assignment, reward: float = 1.0, error: str | None = None) -> Report:
    response = Completion("a", (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    rewards = {} if error else {"A": reward}
    request = assignment.request
    rollout = Rollout(
        request.id,
        request.episode_type,
        steps=[Step("A", 0, [], response, 1.0)],
        rewards=rewards,
        error=error,
    )
    return Report(finished=[Finished(rollout, assignment.attempt)])


def groups(credited: list[CreditedGroup]) -> dict[str, list[str]]:
    return {one.group.id: [result.rollout.id for result in one.results] for one in credited}


# Pace


@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12),
)
def test_never_more_is_admitted_than_staleness_allows_nor_than_the_run_needs(size, lag, steps, script):
    coordinator = coordinator_of(batch_size=size, max_staleness=lag, num_steps=steps)
    running: list[Assignment] = []
    total = 0
    for played_now, trained in [*script, *[(99, True)] * steps]:
        new = admitted(coordinator)
        total += len(new)
        running += new
        # (max_staleness + version + 1) * batch_size, and never more than num_steps * batch_size
        assert total == min((lag + coordinator.version + 1) * size, steps * size)
        for assignment in running[:played_now]:
            coordinator.handle("w", played(assignment))
        del running[:played_now]
        coordinator.take_groups()
        coordinator.version += trained
    assert total == steps * size
    assert coordinator.done
    assert admitted(coordinator) == []


def test_children_are_not_roots_in_the_count():
    coordinator = coordinator_of()
    first, second = admitted(coordinator)
    children = [EpisodeRequest("other", i, id=f"{first.request.id}/0/{i}") for i in range(5)]
    coordinator.handle("w", Report(spawned=[Spawn(first.request.id, first.attempt, 0, children)]))
    assert len(admitted(coordinator)) == 5
    coordinator.handle("w", played(second))
    assert admitted(coordinator) == []


# Groups


def test_a_group_is_credited_once_when_all_of_it_is_in_and_in_order():
    coordinator = coordinator_of()
    first, second = admitted(coordinator)
    coordinator.handle("w", played(second, reward=0.0))
    assert coordinator.take_groups() == []
    assert not coordinator.done
    coordinator.handle("w", played(first, reward=1.0))
    (credited,) = coordinator.take_groups()
    assert groups([credited]) == {"batch-000000": ["b000000.0", "b000000.1"]}
    assert (credited.batch, credited.group.roots) == (0, 2)
    assert [record.reward for record in credited.group.records] == [1.0, 0.0]
    assert coordinator.take_groups() == []


def test_named_groups_are_credited_by_themselves():
    coordinator = coordinator_of(lambda index: f"g{index // 2}", batch_size=4, max_staleness=1)
    batch = [a for a in admitted(coordinator) if a.request.id.startswith("b000000")]
    for assignment in (batch[2], batch[3], batch[0]):
        coordinator.handle("w", played(assignment))
    assert groups(coordinator.take_groups()) == {"batch-000000/g1": ["b000000.2", "b000000.3"]}
    coordinator.handle("w", played(batch[1]))
    assert groups(coordinator.take_groups()) == {"batch-000000/g0": ["b000000.0", "b000000.1"]}


def test_the_same_group_name_in_two_batches_is_two_groups():
    coordinator = coordinator_of(lambda index: "g", max_staleness=1)
    for assignment in admitted(coordinator):
        coordinator.handle("w", played(assignment))
    assert list(groups(coordinator.take_groups())) == ["batch-000000/g", "batch-000001/g"]


@given(st.permutations(range(4)))
def test_without_staleness_credit_does_not_depend_on_who_was_first(order):
    """RAE's baselines move with every group: in the order of the requests, whatever comes in first."""

    def advantages(order: list[int]) -> list[float]:
        coordinator = coordinator_of(lambda index: f"g{index // 2}", batch_size=4)
        batch = admitted(coordinator)
        records = []
        for index in order:
            coordinator.handle("w", played(batch[index], reward=float(index)))
            records += [record for credited in coordinator.take_groups() for record in credited.group.records]
        return [record.advantage for record in records]

    assert advantages(order) == advantages([0, 1, 2, 3])


def test_a_group_that_cannot_be_compared_is_an_error():
    coordinator = coordinator_of()
    first, second = admitted(coordinator)
    for name, kind in enumerate(("play", "other")):
        child = EpisodeRequest(kind, 0, group="mixed", id=f"{first.request.id}/0/{name}")
        coordinator.handle("w", Report(spawned=[Spawn(first.request.id, first.attempt, name, [child])]))
    children = admitted(coordinator)
    for assignment in [*children, first, second]:
        coordinator.handle("w", played(assignment))
    with pytest.raises(CreditError, match="'mixed' mixes episode types"):
        coordinator.take_groups()


def test_a_failed_root_still_completes_its_group():
    coordinator = coordinator_of(error_budget=1.0)
    first, second = admitted(coordinator)
    coordinator.handle("w", played(first, error="Traceback"))
    coordinator.handle("w", played(second))
    (credited,) = coordinator.take_groups()
    assert credited.group.roots == 2
    assert [record.rollout_id for record in credited.group.records] == ["b000000.1"]


def test_rewards_may_depend_on_the_whole_group():
    class Ranked(Numbers):
        def score_group(self, results):
            best = max(result.rewards["A"] for result in results)
            for result in results:
                result.rollout.rewards["A"] = float(result.rewards["A"] == best)

    coordinator = coordinator_of()
    ranked = Ranked()
    ranked.roles, ranked.episodes, ranked.batch_size = coordinator.arena.roles, coordinator.arena.episodes, 2
    coordinator.arena = ranked
    first, second = admitted(coordinator)
    coordinator.handle("w", played(first, reward=7.0))
    coordinator.handle("w", played(second, reward=3.0))
    (credited,) = coordinator.take_groups()
    assert [record.reward for record in credited.group.records] == [1.0, 0.0]


# Failures


def test_too_many_failures_stop_the_run():
    coordinator = coordinator_of(batch_size=8, error_budget=0.1)
    batch = admitted(coordinator)
    for assignment in batch[:2]:
        coordinator.handle("w", played(assignment, error="Traceback"))
    with pytest.raises(ErrorBudgetExceeded, match="3 of 3 episodes of type 'play' failed"):
        coordinator.handle("w", played(batch[2], error="Traceback"))


def test_a_report_that_does_not_count_is_not_counted():
    coordinator = coordinator_of(batch_size=8, error_budget=0.1)
    first, *others = admitted(coordinator)
    for _ in range(5):
        coordinator.handle("w", played(first, error="Traceback"))  # the same one again
    coordinator.scheduler.remove_worker("w")
    for assignment in others:
        coordinator.handle("w", played(assignment, error="Traceback"))  # given up
    assert (coordinator.budget.finished, coordinator.budget.failed) == (1, 1)


# Artifacts


def test_artifacts_are_drawn_here_for_roots_and_children_by_their_ids():
    coordinator = coordinator_of()
    store = coordinator.arena.add_store("other")
    for letter in "abcdefgh":
        store.add(Artifact(letter, letter))
    first, _ = admitted(coordinator)
    child = EpisodeRequest("other", id=f"{first.request.id}/0/0")
    coordinator.handle("w", Report(spawned=[Spawn(first.request.id, first.attempt, 0, [child])]))
    (assignment,) = admitted(coordinator)
    assert assignment.request.artifact == coordinator.arena.resolve_artifact(child).artifact
    assert assignment.request.artifact in set("abcdefgh")


def test_a_wrong_batch_is_said_before_anything_runs():
    class Empty(Numbers):
        def get_batch(self):
            return []

    arena = Empty()
    coordinator = Coordinator(arena, RunConfig())
    with pytest.raises(ConfigError, match=r"Empty.get_batch\(\) returned no requests"):
        coordinator.take_orders()


# Going on


def plain_groups(index: int) -> str:
    return str(index % 2)


@given(st.integers(0, 2), st.integers(0, 11), st.integers(0, 3))
def test_what_goes_on_from_any_group_ends_as_what_was_never_interrupted(lag, stop_after, behind):
    """Played one after the other, a version a batch; stopped after some group was journalled."""
    settings = {"max_staleness": lag, "num_steps": 3, "batch_size": 4}

    def play(coordinator: Coordinator, journal: list[CreditedGroup], groups_at_most: int) -> None:
        waiting: list[Assignment] = []
        while len(journal) < groups_at_most and not coordinator.done:
            waiting += admitted(coordinator)
            if waiting:
                assignment = waiting.pop(0)
                coordinator.handle("w", played(assignment, reward=hash(assignment.request.id) % 7))
            journal += coordinator.take_groups()
            coordinator.version = max(coordinator.version, len(journal) // 2)

    through: list[CreditedGroup] = []
    play(coordinator_of(plain_groups, **settings), through, 99)
    journal: list[CreditedGroup] = []
    play(coordinator_of(plain_groups, **settings), journal, stop_after)
    resumed = coordinator_of(plain_groups, **settings)
    if journal:
        resumed.restore(journal[-1].state)
    resumed.version = max(0, len(journal) // 2 - behind)  # the checkpoint may be older than the journal
    untrained = len(journal)
    first = admitted(resumed)
    limit = (lag + resumed.version + 1) * 4
    assert all(int(a.request.id[1:7]) * 4 < limit for a in first)
    resumed.version = untrained // 2
    for assignment in [*first, *admitted(resumed)]:
        resumed.handle("w", played(assignment, reward=hash(assignment.request.id) % 7))
        journal += resumed.take_groups()
    play(resumed, journal, 99)
    assert sorted(groups(journal).items()) == sorted(groups(through).items())
    assert resumed.done
    assert resumed.budget.finished == 12
    assert resumed.arena.state_dict()["batches"] == 3


def test_a_step_that_needs_more_gets_more_and_asking_twice_gets_no_more():
    coordinator = coordinator_of(num_steps=1)
    assert len(admitted(coordinator)) == 2
    coordinator.extend(0, 1)
    coordinator.extend(0, 1)
    assert len(admitted(coordinator)) == 2
    assert admitted(coordinator) == []


def test_what_a_later_version_was_given_waits_for_it():
    coordinator = coordinator_of(num_steps=3)
    coordinator.extend(1, 2)
    assert len(admitted(coordinator)) == 2
    coordinator.version = 1
    assert len(admitted(coordinator)) == 2 + 2 * 2


def test_what_a_step_was_given_is_not_forgotten_by_an_older_journal():
    first = coordinator_of(num_steps=1)
    for assignment in admitted(first):
        first.handle("w", played(assignment))
    (credited,) = first.take_groups()
    resumed = coordinator_of(num_steps=1)
    resumed.extend(0, 1)  # the learner knows of it
    resumed.restore(credited.state)
    assert not resumed.done
    assert len(admitted(resumed)) == 2


def test_an_episode_that_is_played_again_is_counted_once():
    coordinator = coordinator_of(plain_groups)
    first, second = admitted(coordinator)
    coordinator.handle("w", played(second))
    coordinator.handle("w", played(first))
    credited, _ = coordinator.take_groups()
    resumed = coordinator_of(plain_groups)
    resumed.restore(credited.state)  # without the second group, which its worker had finished
    assert resumed.budget.finished == 1
    resumed.handle("w", played(*admitted(resumed)))
    assert resumed.budget.finished == 2


def test_a_run_is_not_resumed_as_another_task():
    coordinator = coordinator_of(plain_groups)
    coordinator.handle("w", played(admitted(coordinator)[0]))
    (first,) = coordinator.take_groups()
    resumed = coordinator_of(plain_groups)
    del resumed.arena.episodes["other"]
    with pytest.raises(ConfigError, match=r"episodes of type other, and Numbers knows none; .*the task it"):
        resumed.restore(first.state)


class Plaything:
    """Nothing that a journal can keep."""


@pytest.mark.parametrize("where", ["request", "store"])
def test_what_a_journal_cannot_keep_stops_the_resumed_run_alone(where):
    coordinator = coordinator_of(plain_groups)
    if where == "store":
        coordinator.arena.add_store("toys").add(Artifact("toy", Plaything()))
    else:
        coordinator.arena.get_batch = lambda: [
            EpisodeRequest("play", Plaything() if index else 0, group=str(index)) for index in range(2)
        ]
    coordinator.handle("w", played(admitted(coordinator)[0]))
    (first,) = coordinator.take_groups()
    with pytest.raises(ConfigError, match=r"can't be resumed: .* holds a Plaything.*text, numbers"):
        coordinator_of(plain_groups).restore(first.state)
    with pytest.raises(ConfigError, match="another version"):
        coordinator_of().restore(b"\x01")


class Pair(NamedTuple):
    left: int
    right: int


PLAIN = [("a", 1), [("b", (2,))], {("c", 3): ("d",)}, {1: None}, 1.5, b"e", 2**64 - 1]


def restored(value: object) -> object:
    """``value`` as artifact of a request that is sent again."""
    coordinator = coordinator_of(plain_groups)
    coordinator.arena.add_store("all").add(Artifact("one", value))
    coordinator.arena.get_batch = lambda: [
        EpisodeRequest("play", value, {"more": value}, group=str(index)) for index in range(2)
    ]
    coordinator.handle("w", played(admitted(coordinator)[0]))
    (first,) = coordinator.take_groups()
    resumed = coordinator_of(plain_groups)
    resumed.arena.add_store("all")
    resumed.restore(first.state)
    (again,) = admitted(resumed)
    assert again.request.meta == {"more": again.request.artifact}
    assert resumed.arena.stores["all"].get("one").data == again.request.artifact
    return again.request.artifact


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_data_comes_back_as_it_was_and_tuples_as_tuples(value):
    assert restored(value) == value


@pytest.mark.parametrize("value", [Pair(1, 2), [2**64], {"a": np.float64(1.5)}, {1, 2}], ids=repr)
def test_what_would_come_back_as_something_else_is_an_obstacle(value):
    with pytest.raises(ConfigError, match=r"can't be resumed: .* holds an? (Pair|int|float64|set)"):
        restored(value)
