"""Artifact stores: bounded, weighted, deterministic from a key, and restored from JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray import Arena, Artifact, ArtifactStore, EpisodeRequest, RunConfig
from selfplay_ray.errors import ConfigError


def filled(*names: str, max_size: int | None = None, seed: int = 0) -> ArtifactStore:
    store = ArtifactStore(max_size, seed)
    for name in names:
        store.add(Artifact(name, name.upper()))
    return store


def names(store: ArtifactStore) -> list[str]:
    return [artifact.id for artifact in store]


def test_the_oldest_goes_when_a_store_is_full():
    store = filled("a", "b", "c", max_size=2)
    assert names(store) == ["b", "c"]
    assert store.get("a") is None
    assert store.count() == len(store) == 2


def test_an_id_added_again_replaces_and_becomes_the_newest():
    store = filled("a", "b", max_size=2)
    store.add(Artifact("a", "new"))
    assert names(store) == ["b", "a"]
    store.add(Artifact("c", "C"))
    assert names(store) == ["a", "c"]
    assert store.get("a") == Artifact("a", "new")


@given(st.lists(st.sampled_from("abcdef")), st.integers(1, 4))
def test_a_bounded_store_holds_the_newest_distinct_ids(added, size):
    store = filled(*added, max_size=size)
    newest_first = list(dict.fromkeys(reversed(added)))
    assert names(store) == newest_first[:size][::-1]


@given(st.integers(0, 2**32))
def test_zero_weights_are_never_drawn(seed):
    store = ArtifactStore(seed=seed)
    for name, weight in [("first", 0.0), ("light", 1.0), ("middle", 0.0), ("heavy", 3.0), ("last", 0.0)]:
        store.add(Artifact(name, None, weight))
    assert {artifact.id for artifact in store.sample(50, weighted=True)} <= {"light", "heavy"}


def test_weights_are_proportions_and_unweighted_is_uniform():
    store = ArtifactStore(seed=1)
    store.add(Artifact("light", None, 1.0))
    store.add(Artifact("heavy", None, 9.0))
    heavy = [artifact.id for artifact in store.sample(2000, weighted=True)].count("heavy")
    assert 1700 < heavy < 1900  # 9 in 10; one standard deviation is 13
    heavy = [artifact.id for artifact in store.sample(2000)].count("heavy")
    assert 900 < heavy < 1100


def test_the_same_key_draws_the_same_and_leaves_other_draws_alone():
    letters = "abcdefghijklmnopqrstuvwxyz"
    one, other = filled(*letters), filled(*letters)
    assert one.sample(9, key="r/0/1") == one.sample(9, key="r/0/1") == other.sample(9, key="r/0/1")
    assert one.sample(9, key="r/0/2") != one.sample(9, key="r/0/1")
    assert one.sample(9) == other.sample(9)  # however often keys were drawn in between
    assert one.sample(9) != one.sample(9)
    assert filled(*letters, seed=1).sample(9, key="r/0/1") != one.sample(9, key="r/0/1")


def test_a_fork_draws_by_its_own_seed_and_goes_its_own_way():
    store = filled(*"abcdefgh", seed=1)
    drawn = filled(*"abcdefgh", seed=1).sample(20)
    fork = store.fork(2)
    fork.sample(20)
    fork.add(Artifact("new", "new"))
    assert store.sample(20) == drawn
    assert names(store) == list("abcdefgh")
    store.add(Artifact("later", "later"))
    assert [artifact.id for artifact in fork] == [*"abcdefgh", "new"]
    assert filled(*"abcdefgh", seed=1).fork(2).sample(20) == filled(*"abcdefgh", seed=2).sample(20)


def test_a_store_goes_on_after_json_as_it_would_have():
    store = filled("a", "b", "c", "d", max_size=4, seed=3)
    store.add(Artifact("e", {"n": [1, 2.5, None]}, 0.5))
    store.sample(2)
    restored = ArtifactStore()
    restored.load_state_dict(json.loads(json.dumps(store.state_dict())))
    assert list(restored) == list(store)
    assert restored.sample(9, weighted=True) == store.sample(9, weighted=True)
    restored.add(Artifact("f", None))
    assert names(restored) == ["c", "d", "e", "f"]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ConfigError, match="artifact 'a' has weight"):
        Artifact("a", None, weight)


@pytest.mark.parametrize("size", [0, -1])
def test_a_store_that_can_hold_nothing_is_refused(size):
    with pytest.raises(ConfigError, match="can hold nothing"):
        ArtifactStore(size)


def test_nothing_to_sample_from_is_said():
    with pytest.raises(ConfigError, match="nothing to sample from"):
        ArtifactStore().sample()
    store = ArtifactStore()
    store.add(Artifact("a", None, 0.0))
    assert store.sample_one().id == "a"
    with pytest.raises(ConfigError, match="weight above 0"):
        store.sample_one(weighted=True)


def test_an_arena_draws_by_request_id_from_the_store_named_like_the_type():
    arena = Arena()
    arena.add_store("solve", filled(*"abcdefgh"))
    drawn = [arena.resolve_artifact(EpisodeRequest("solve", id=f"r{i}")).artifact for i in range(20)]
    assert drawn == [arena.resolve_artifact(EpisodeRequest("solve", id=f"r{i}")).artifact for i in range(20)]
    assert len(set(drawn)) > 1
    assert arena.resolve_artifact(EpisodeRequest("solve", "given", id="r0")).artifact == "given"
    assert arena.resolve_artifact(EpisodeRequest("other", id="r0")).artifact is None


def test_the_runs_seed_decides_what_is_drawn_whenever_the_stores_were_added():
    def draws(seed: int) -> list[object]:
        arena = Arena()
        arena.add_store("solve", filled(*"abcdefgh"))
        arena.configure(RunConfig(seed=seed))
        keyed = [arena.resolve_artifact(EpisodeRequest("solve", id=f"r{i}")).artifact for i in range(20)]
        return [*keyed, *arena.stores["solve"].sample(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
