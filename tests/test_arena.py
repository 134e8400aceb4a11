"""The arena in one process: what is registered, what comes next, names, limits, and what a run keeps."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from selfplay_ray import (
    Arena,
    Artifact,
    Episode,
    EpisodeRequest,
    EpisodeState,
    GRPOCredit,
    Message,
    MockInferenceClient,
    RAECredit,
    Role,
    Rubric,
    RunConfig,
)
from selfplay_ray.errors import ConfigError, EpisodeLimitError, UnknownNameError


class Leaf(Episode):
    """Says its artifact; worth its length."""

    rubric = Rubric([lambda rollout, arena: {"Solver": float(len(rollout.steps[0].completion_text))}])

    async def rollout(self, arena, artifact, state):
        await self.call_model("Solver", str(artifact), arena)
        return state


class Tree(Episode):
    """Spawns as many children as its artifact says, level by level: [2, 3] is two children of three leaves each."""

    async def rollout(self, arena, artifact, state):
        width, *below = artifact
        child = EpisodeRequest("tree", below) if below else EpisodeRequest("leaf", "x")
        state.child_results = await arena.generate_rollouts([child] * width)
        return state


class Batches(Arena):
    """Plays ``requests``, batch after batch."""

    requests: list[EpisodeRequest]

    def get_batch(self):
        return self.requests


def arena_of(
    *requests: EpisodeRequest, client: MockInferenceClient | None = None, **settings: Any
) -> Batches:
    arena = Batches(client or MockInferenceClient(lambda messages: messages[-1]["content"]), **settings)
    arena.requests = list(requests)
    arena.add_role(Role("Solver"))
    arena.add_episode("leaf", Leaf())
    arena.add_episode("tree", Tree())
    return arena


# Names


async def test_ids_are_derived_from_the_parents():
    arena = arena_of(EpisodeRequest("tree", [2, 1]))
    (tree,) = (await arena.step()).results
    assert [rollout.id for rollout in tree.all_rollouts()] == [
        "b000000.0",
        "b000000.0/0/0",
        "b000000.0/0/0/0/0",
        "b000000.0/0/1",
        "b000000.0/0/1/0/0",
    ]
    assert [EpisodeRequest("x", id=rollout.id).depth for rollout in tree.all_rollouts()] == [0, 1, 2, 1, 2]
    assert (await arena.step()).results[0].rollout.id == "b000001.0"


async def test_each_call_for_children_has_its_number():
    class Twice(Episode):
        async def rollout(self, arena, artifact, state):
            await arena.run_episode("leaf", "x")
            await arena.generate_rollouts([])
            await arena.generate_rollouts([EpisodeRequest("leaf", "y"), EpisodeRequest("leaf", "z")])
            return state

    arena = arena_of()
    arena.add_episode("twice", Twice())
    result = await arena.run_episode("twice")
    assert [child.rollout.id.removeprefix(result.rollout.id) for child in result.children] == [
        "/0/0",
        "/2/0",
        "/2/1",
    ]
    assert [child.rollout.artifact for child in result.children] == ["x", "y", "z"]


async def test_ids_given_by_a_user_are_replaced():
    results = await arena_of().generate_rollouts([EpisodeRequest("leaf", "x", id="mine")] * 2)
    assert len({result.rollout.id for result in results}) == 2


async def test_playing_outside_of_the_batches_changes_none_of_them():
    """An evaluation between two steps must not move the training that follows."""

    class Drawing(Batches):
        def get_batch(self):
            return [EpisodeRequest("leaf", self.rng.random())]

    async def second_batch(evaluations: int) -> tuple[str, object]:
        arena = Drawing(MockInferenceClient(lambda messages: "x"))
        arena.add_role(Role("Solver"))
        arena.add_episode("leaf", Leaf())
        await arena.step()
        for _ in range(evaluations):
            await arena.run_episode("leaf", "y", is_trainable=False)
        rollout = (await arena.step()).results[0].rollout
        return rollout.id, rollout.artifact

    assert await second_batch(0) == await second_batch(3)


# Limits


async def test_a_tree_deeper_than_allowed_names_the_episode():
    arena = arena_of(EpisodeRequest("tree", [1, 1, 1]), max_depth=2)
    (tree,) = (await arena.step()).results
    errors = [rollout.error for rollout in tree.all_rollouts()]
    assert errors[:2] == [None, None]
    assert "EpisodeLimitError: episode 'tree' (b000000.0/0/0/0/0) would spawn children 3 deep" in (
        errors[2] or ""
    )
    assert "max_depth is 2" in (errors[2] or "")


async def test_a_fan_out_wider_than_allowed_names_the_episode_and_counts_over_all_calls():
    class Greedy(Episode):
        async def rollout(self, arena, artifact, state):
            await arena.generate_rollouts([EpisodeRequest("leaf", "x")] * 2)
            with pytest.raises(EpisodeLimitError):
                await arena.generate_rollouts([EpisodeRequest("leaf", "x")] * 2)
            await arena.generate_rollouts([EpisodeRequest("leaf", "x")])  # a refused call costs nothing
            await arena.generate_rollouts([EpisodeRequest("leaf", "x")])
            return state

    arena = arena_of(max_fan_out=3)
    arena.add_episode("greedy", Greedy())
    result = await arena.run_episode("greedy")
    assert len(result.children) == 3
    assert "episode 'greedy' (" in (result.rollout.error or "")
    assert "would have 4 children; max_fan_out is 3" in (result.rollout.error or "")


async def test_children_of_an_evaluation_are_evaluations():
    arena = arena_of(EpisodeRequest("tree", [1, 1], is_trainable=False), EpisodeRequest("tree", [1, 1]))
    evaluated, trained = (await arena.step()).results
    assert [result.is_trainable for result in evaluated.all_results()] == [False] * 3
    assert [result.is_trainable for result in trained.all_results()] == [True] * 3
    assert [step.trainable for r in evaluated.all_rollouts() for step in r.steps] == [False]


# What is wrong is said


async def test_unknown_names_are_answered_with_those_that_are_known():
    arena = arena_of(EpisodeRequest("leaff"))
    with pytest.raises(UnknownNameError, match="unknown episode type 'leaff'; known: leaf, tree"):
        await arena.run_episode("leaff")
    with pytest.raises(UnknownNameError, match="unknown episode type 'leaff'"):
        await arena.step()
    with pytest.raises(UnknownNameError, match="unknown role 'Nobody'; known: Solver"):
        await arena.call_model("hello", role_id="Nobody")
    with pytest.raises(UnknownNameError, match="unknown role 'x'; known: none yet"):
        await Arena(MockInferenceClient(str)).call_model("hello", role_id="x")


async def test_an_unknown_type_among_children_is_the_parents_error():
    class Typo(Episode):
        async def rollout(self, arena, artifact, state):
            await arena.generate_rollouts([EpisodeRequest("leaf", "x"), EpisodeRequest("leef", "x")])
            return state

    arena = arena_of()
    arena.add_episode("typo", Typo())
    result = await arena.run_episode("typo")
    assert "unknown episode type 'leef'" in (result.rollout.error or "")
    assert result.children == []


async def test_a_batch_of_nothing_or_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"Batches.get_batch\(\) returned no requests; a batch of 0"):
        await arena_of().step()
    arena = arena_of(*[EpisodeRequest("leaf", "x")] * 3)
    arena.configure(RunConfig(batch_size=4))
    with pytest.raises(ConfigError, match="returned 3 requests, but batch_size is 4"):
        await arena.step()
    arena.configure(RunConfig(batch_size=3))
    assert (await arena.step()).results[0].rollout.id == "b000000.0"  # refused batches were none


async def test_what_an_arena_lacks_is_said():
    with pytest.raises(NotImplementedError, match=r"Arena must override get_batch\(\)"):
        Arena().next_batch()
    with pytest.raises(ConfigError, match="nothing to run on"):
        await Arena().call_model("hello")
    with pytest.raises(ConfigError, match="role 'A' has temperature 0"):
        Arena().add_role(Role("A", temperature=0.0))
    Arena().add_role(Role("A", temperature=0.0, trainable=False))


async def test_an_empty_store_is_named():
    arena = arena_of()
    arena.add_store("leaf")
    with pytest.raises(ConfigError, match="nothing to sample from"):
        await arena.run_episode("leaf")


# Asking the model


async def test_a_string_is_one_user_message_and_the_system_prompt_comes_once():
    client = MockInferenceClient(lambda messages: "ok")
    arena = Arena(client)
    arena.add_role(Role("A", "be A", temperature=0.3, max_tokens=5))
    system = Message(role="system", content="be A")
    own = Message(role="system", content="my own")
    user = Message(role="user", content="hi")
    await arena.call_model("hi", role_id="A")
    for given in ([user], [system, user], [own, user]):
        await arena.call_model(given, role_id="A")
    await arena.call_model("hi", temperature=0.2, max_tokens=9)
    assert [list(call.messages) for call in client.calls] == [
        [system, user],
        [system, user],
        [system, user],
        [own, user],
        [user],
    ]
    assert (client.calls[0].temperature, client.calls[0].max_tokens) == (0.3, 5)
    assert (client.calls[-1].temperature, client.calls[-1].max_tokens) == (0.2, 9)
    assert len({call.seed for call in client.calls}) == 5


async def test_deeper_episodes_are_served_first():
    client = MockInferenceClient(lambda messages: "x")
    arena = arena_of(client=client)
    await arena.call_model("from outside")
    await arena.run_episode("leaf", "at the root")
    await arena.run_episode("tree", [1, 1])
    assert [call.priority for call in client.calls] == [0, 0, 2]


# Steps


async def test_a_step_credits_siblings_and_gathers_records():
    arena = arena_of(EpisodeRequest("leaf", "a"), EpisodeRequest("leaf", "bbb"))
    step = await arena.step()
    (group,) = step.groups
    assert group.id == "batch-000000"
    # rewards 1 and 3, mean 2
    assert [(r.rollout_id, r.reward, r.advantage) for r in group.records] == [
        ("b000000.0", 1.0, -1.0),
        ("b000000.1", 3.0, 1.0),
    ]


async def test_named_groups_are_credited_one_by_one():
    arena = arena_of(
        EpisodeRequest("leaf", "a", group="x"),
        EpisodeRequest("leaf", "bb"),
        EpisodeRequest("leaf", "ccc", group="x"),
    )
    groups = {group.id: group for group in (await arena.step()).groups}
    assert set(groups) == {"batch-000000/x", "batch-000000"}
    assert [record.advantage for record in groups["batch-000000/x"].records] == [-1.0, 1.0]
    assert [record.advantage for record in groups["batch-000000"].records] == [0.0]
    assert groups["batch-000000/x"].roots == 2


async def test_concurrent_trees_do_not_mix():
    arena = arena_of(*[EpisodeRequest("tree", [2, 2])] * 3)
    for tree in (await arena.step()).results:
        for result in tree.all_results():
            assert all(child.rollout.id.startswith(result.rollout.id + "/") for child in result.children)
        assert len(tree.all_rollouts()) == 1 + 2 + 4


async def test_two_calls_for_children_at_once():
    class Both(Episode):
        async def rollout(self, arena, artifact, state):
            first, second = await asyncio.gather(
                arena.generate_rollouts([EpisodeRequest("leaf", "a")]),
                arena.generate_rollouts([EpisodeRequest("leaf", "b")]),
            )
            state.child_results = [*first, *second]
            return state

        def get_extras(self, state):
            return {"said": [r.rollout.steps[0].completion_text for r in state.child_results]}

    arena = arena_of()
    arena.add_episode("both", Both())
    result = await arena.run_episode("both")
    assert result.rollout.extras == {"said": ["a", "b"]}


# What a run keeps


async def test_a_restored_arena_goes_on_as_the_first_would_have():
    class Drawing(Batches):
        def get_batch(self):
            return [EpisodeRequest("leaf"), EpisodeRequest("leaf", f"{self.rng.random()}")]

    def made() -> Drawing:
        arena = Drawing(MockInferenceClient(lambda messages: messages[-1]["content"]), RAECredit(), seed=5)
        arena.add_role(Role("Solver"))
        arena.add_episode("leaf", Leaf())
        arena.add_store("leaf")
        return arena

    first, second = made(), made()
    for letters in ("a", "bb", "ccc", "dddd"):
        first.stores["leaf"].add(Artifact(letters, letters))
    await first.step()
    await first.run_episode("leaf", "evaluation")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (await first.step()).groups == (await second.step()).groups
    one, other = await first.run_episode("leaf", "x"), await second.run_episode("leaf", "x")
    assert one.rollout.id == other.rollout.id


def test_a_state_with_a_store_that_is_not_there_is_refused():
    arena = Arena()
    arena.add_store("topics")
    with pytest.raises(UnknownNameError, match="unknown store 'topics'"):
        Arena().load_state_dict(arena.state_dict())


async def test_an_arena_travels_without_its_runtime():
    arena = Arena(MockInferenceClient(str), GRPOCredit(normalize=True), seed=3)
    arena.add_role(Role("A"))
    arena.add_store("topics").add(Artifact("t", "topic"))
    there = copy.deepcopy(arena)  # by the protocol that pickle uses
    assert (there.roles, there.seed) == (arena.roles, 3)
    assert list(there.stores["topics"]) == [Artifact("t", "topic")]
    with pytest.raises(ConfigError, match="nothing to run on"):
        await there.call_model("hello")


def scripted(play: Callable[[Arena, EpisodeState], Coroutine[Any, Any, None]]) -> Episode:
    class Scripted(Episode):
        async def rollout(self, arena, artifact, state):
            await play(arena, state)
            return state

    return Scripted()


async def test_a_child_that_fails_is_a_result_with_its_error_and_the_parent_goes_on():
    async def fail(arena, state):
        raise RuntimeError("broken child")

    async def parent(arena, state):
        state.child_results = await arena.generate_rollouts(
            [EpisodeRequest("fail"), EpisodeRequest("leaf", "fine")]
        )

    arena = arena_of()
    arena.add_episode("fail", scripted(fail))
    arena.add_episode("parent", scripted(parent))
    result = await arena.run_episode("parent")
    assert result.rollout.error is None
    assert ["broken child" in (child.rollout.error or "") for child in result.children] == [True, False]
    assert [child.rewards for child in result.children] == [{}, {"Solver": 4.0}]


async def test_what_runs_when_a_step_is_cancelled_is_cancelled_too():
    stopped = []

    async def wait(arena, state):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(1)
            raise

    async def parent(arena, state):
        await arena.generate_rollouts([EpisodeRequest("wait")] * 2)

    arena = arena_of(EpisodeRequest("parent"), EpisodeRequest("wait"))
    arena.add_episode("wait", scripted(wait))
    arena.add_episode("parent", scripted(parent))
    step = asyncio.create_task(arena.step())
    for _ in range(10):
        await asyncio.sleep(0)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert len(stopped) == 3


async def test_what_a_reward_function_spawns_is_never_trained_on():
    async def by_another_episode(rollout, arena):
        return {"A": len((await arena.run_episode("inner")).rollout.steps)}

    class SpeakingEpisode(Episode):
        async def rollout(self, arena, artifact, state):
            await self.call_model("A", "speak", arena)
            return state

    outer = SpeakingEpisode()
    outer.rubric = Rubric([by_another_episode])
    arena = Arena(MockInferenceClient(lambda messages: "said"))
    arena.add_role(Role("A"))
    arena.add_episode("outer", outer)
    arena.add_episode("inner", SpeakingEpisode())
    tree = await arena.run_episode("outer")
    assert tree.rewards == {"A": 1.0}
    assert [child.is_trainable for child in tree.children] == [False]
