"""One run of one episode: the order of its calls, their seeds, and the boundary to what somebody else wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from selfplay_ray import (
    Arena,
    Completion,
    Episode,
    EpisodeRequest,
    EpisodeState,
    MockInferenceClient,
    ModelCall,
    Role,
    Rollout,
    Rubric,
)
from selfplay_ray.execution import current_run, execute

Play = Callable[[Arena, EpisodeState], Coroutine[Any, Any, None]]


class Scripted(Episode):
    """Plays what it is given as a function."""

    def __init__(self, play: Play, rubric: Rubric | None = None) -> None:
        self.play_script = play
        self.rubric = rubric or Rubric()

    async def rollout(self, arena, artifact, state):
        await self.play_script(arena, state)
        return state

    def get_extras(self, state):
        return {"seen": [step.index for step in state.trajectory]}


class SlowClient(MockInferenceClient):
    """Answers the call whose text begins with a number after that many turns of the event loop."""

    async def complete(self, call: ModelCall) -> Completion:
        for _ in range(int(call.messages[-1]["content"].split()[0])):
            await asyncio.sleep(0)
        return await super().complete(call)


def arena_of(play: Play, rubric: Rubric | None = None, client: MockInferenceClient | None = None) -> Arena:
    arena = Arena(client or MockInferenceClient(lambda messages: messages[-1]["content"].upper()))
    arena.add_role(Role("A"))
    arena.add_role(Role("Frozen", trainable=False))
    arena.add_episode("x", Scripted(play, rubric))
    return arena


def running() -> EpisodeRequest:
    """The request of the episode that the caller is part of."""
    run = current_run()
    assert run is not None
    return run.request


def request(name: str = "b000000.0", **changes: Any) -> EpisodeRequest:
    return EpisodeRequest("x", "artifact", {"note": 1}, id=name, **changes)


async def test_a_rollout_tells_what_happened():
    async def play(arena, state):
        await arena.call_model("hello", role_id="A")

    rollout, children = await execute(arena_of(play), request())
    assert (rollout.id, rollout.episode_type, rollout.artifact) == ("b000000.0", "x", "artifact")
    assert rollout.meta == {"note": 1}
    assert [step.completion_text for step in rollout.steps] == ["HELLO"]
    assert rollout.rewards == {"A": 0.0}
    assert 0 < rollout.started_at <= rollout.ended_at
    assert children == []
    assert current_run() is None


async def test_an_episode_that_raises_is_data_with_its_traceback_and_what_was_said():
    async def play(arena, state):
        await arena.call_model("hello", role_id="A")
        raise RuntimeError("the board is on fire")

    rollout, _ = await execute(arena_of(play), request())
    assert "RuntimeError: the board is on fire" in (rollout.error or "")
    assert [step.completion_text for step in rollout.steps] == ["HELLO"]
    assert rollout.rewards == {}
    assert current_run() is None


async def test_steps_are_in_the_order_of_the_calls_not_of_the_answers():
    async def play(arena, state):
        await asyncio.gather(*(arena.call_model(f"{n} loops", role_id="A") for n in (9, 5, 1)))

    client = SlowClient(lambda messages: messages[-1]["content"])
    rollout, _ = await execute(arena_of(play, client=client), request())
    assert [call.messages[0]["content"] for call in client.calls] == ["1 loops", "5 loops", "9 loops"]
    assert [(step.index, step.completion_text) for step in rollout.steps] == [
        (0, "9 loops"),
        (1, "5 loops"),
        (2, "1 loops"),
    ]
    assert rollout.extras["seen"] == [0, 1, 2]


async def test_concurrent_episodes_keep_their_steps_apart():
    async def play(arena, state):
        await asyncio.gather(*(arena.call_model(f"{n} {running().id}", role_id="A") for n in (3, 1)))

    arena = arena_of(play, client=SlowClient(lambda messages: messages[-1]["content"]))
    played = await asyncio.gather(*(execute(arena, request(f"b.{i}")) for i in range(3)))
    for i, (rollout, _) in enumerate(played):
        assert [step.completion_text for step in rollout.steps] == [f"3 b.{i}", f"1 b.{i}"]


async def test_the_same_request_samples_with_the_same_seeds_and_another_with_others():
    async def play(arena, state):
        await arena.call_model("one", role_id="A")
        await arena.call_model("two")
        await arena.call_model("three", role_id="A")

    async def seeds(name: str, seed: int = 0) -> list[int]:
        client = MockInferenceClient(lambda messages: "ok")
        arena = arena_of(play, client=client)
        arena.seed = seed
        await execute(arena, request(name))
        return [call.seed for call in client.calls]

    first = await seeds("b000000.0")
    assert len(set(first)) == 3
    assert all(0 <= seed < 2**64 for seed in first)
    assert first == await seeds("b000000.0")
    assert not set(first) & set(await seeds("b000000.1"))
    assert not set(first) & set(await seeds("b000000.0", seed=1))


async def test_a_judge_is_asked_without_a_role_and_leaves_no_step():
    async def judged(rollout: Rollout, arena: Arena) -> dict[str, float]:
        verdict = await arena.call_model("who won?", temperature=0.0)
        return {"A": 1.0 if verdict.text == "A" else 0.0}

    async def play(arena, state):
        await arena.call_model("hello", role_id="A")
        await arena.call_model("an oracle, in the middle of the episode")

    policy, judge = MockInferenceClient(lambda messages: "hi"), MockInferenceClient(lambda messages: "A")
    arena = Arena(policy, judge=judge)
    arena.add_role(Role("A", "be A"))
    arena.add_episode("x", Scripted(play, Rubric([judged])))
    rollout, _ = await execute(arena, request())
    assert rollout.rewards == {"A": 1.0}
    assert [step.completion_text for step in rollout.steps] == ["hi"]
    assert len(policy.calls) == 1
    assert [call.role_id for call in judge.calls] == [None, None]
    assert judge.calls[1].messages == ({"role": "user", "content": "who won?"},)
    assert judge.calls[1].temperature == 0.0


async def test_a_reward_function_that_speaks_as_a_role_fails_the_rollout():
    async def cheat(rollout: Rollout, arena: Arena) -> dict[str, float]:
        await arena.call_model("pick me", role_id="A")
        return {"A": 1.0}

    async def play(arena, state):
        await arena.call_model("hello", role_id="A")

    rollout, _ = await execute(arena_of(play, Rubric([cheat])), request())
    assert "episode b000000.0 is over, yet role 'A' was called" in (rollout.error or "")
    assert len(rollout.steps) == 1


async def test_a_task_that_outlives_its_episode_adds_no_step():
    tasks: list[asyncio.Task[Completion]] = []

    async def play(arena, state):
        tasks.append(asyncio.create_task(arena.call_model("5 loops", role_id="A")))
        await asyncio.sleep(0)

    client = SlowClient(lambda messages: "late")
    rollout, _ = await execute(arena_of(play, client=client), request())
    with pytest.raises(Exception, match="is over, yet role 'A' was called"):
        await tasks[0]
    assert rollout.error is None
    assert rollout.steps == []


async def test_a_trainable_role_at_temperature_zero_is_refused_unless_it_is_evaluated():
    async def play(arena, state):
        await arena.call_model("hello", role_id="A", temperature=0.0)

    arena = arena_of(play)
    rollout, _ = await execute(arena, request())
    assert "role 'A' was called at temperature 0.0 in trainable episode b000000.0" in (rollout.error or "")
    rollout, _ = await execute(arena, request(is_trainable=False))
    assert rollout.error is None
    assert [step.trainable for step in rollout.steps] == [False]


async def test_a_frozen_role_may_be_greedy_and_is_not_trained_on():
    async def play(arena, state):
        await arena.call_model("hello", role_id="Frozen", temperature=0.0)
        await arena.call_model("hello", role_id="A")

    rollout, _ = await execute(arena_of(play), request())
    assert [(step.role_id, step.trainable) for step in rollout.steps] == [("Frozen", False), ("A", True)]


async def test_cancellation_passes_through():
    started = asyncio.Event()

    async def play(arena, state):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(execute(arena_of(play), request()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_time_limit_of_the_caller_passes_through():
    async def play(arena, state):
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await execute(arena_of(play), request())


async def test_a_cancellation_of_the_episodes_own_making_is_its_failure():
    """Nobody cancelled the rollout, so whoever waits for it must get it, with its error."""

    async def play(arena, state):
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    rollout, _ = await execute(arena_of(play), request())
    assert "CancelledError" in (rollout.error or "")


async def test_an_unknown_type_or_role_is_named_in_the_error():
    async def play(arena, state):
        await arena.call_model("hello", role_id="B")

    arena = arena_of(play)
    rollout, _ = await execute(arena, request())
    assert "unknown role 'B'; known: A, Frozen" in (rollout.error or "")
    rollout, _ = await execute(arena, EpisodeRequest("y", id="b000000.1"))
    assert "unknown episode type 'y'; known: x" in (rollout.error or "")


async def test_children_are_kept_in_the_order_they_were_asked_for_also_by_an_episode_that_fails():
    async def play(arena, state):
        if running().depth:
            return
        later, first = (
            arena.generate_rollouts([EpisodeRequest("x"), EpisodeRequest("x")]),
            arena.generate_rollouts([EpisodeRequest("x")]),
        )
        await asyncio.gather(first, later)
        raise RuntimeError("after the children")

    rollout, children = await execute(arena_of(play), request("r"))
    assert "after the children" in (rollout.error or "")
    assert [child.rollout.id for child in children] == ["r/0/0", "r/1/0", "r/1/1"]


async def test_a_prefix_is_only_given_for_what_continues_the_same_role():
    async def play(arena, state):
        await arena.call_model("one", role_id="A")
        chat = [*state.trajectory[0].prompt, *state.trajectory[0].completion]
        await arena.call_model([*chat, {"role": "user", "content": "two"}], role_id="A")
        await arena.call_model([*chat, {"role": "user", "content": "two"}], role_id="Frozen")
        await arena.call_model(
            [{"role": "user", "content": "other"}, *chat[1:], {"role": "user", "content": "two"}], role_id="A"
        )
        await arena.call_model([*chat, {"role": "user", "content": "two"}])

    client = MockInferenceClient(lambda messages: "ok")
    await execute(arena_of(play, client=client), request())
    assert [call.prefix is not None for call in client.calls] == [False, True, False, False, False]


async def test_the_longest_conversation_so_far_is_continued():
    async def play(arena, state):
        messages: list[Any] = [{"role": "user", "content": "0"}]
        for turn in range(4):
            reply = await arena.call_model(messages, role_id="A")
            messages += [*reply.completion, {"role": "user", "content": f"{turn + 1}"}]

    client = MockInferenceClient(lambda messages: "ok")
    await execute(arena_of(play, client=client), request())
    assert [call.prefix and call.prefix.messages for call in client.calls] == [None, 2, 4, 6]
