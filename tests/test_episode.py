"""Episodes as users write them: chats, single turns, their states."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from selfplay_ray import (
    Arena,
    ChatEpisode,
    Episode,
    EpisodeRequest,
    EpisodeState,
    Message,
    MockInferenceClient,
    MultiTurnEpisode,
    Role,
    Rollout,
    SingleTurnEpisode,
)
from selfplay_ray.errors import EpisodeError


class ScriptedPlayer:
    """Says the next line of its script whatever it is asked."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def __call__(self, messages: Sequence[Message]) -> str:
        return self.lines.pop(0)


def arena_of(client: MockInferenceClient, *roles: Role) -> Arena:
    arena = Arena(client)
    for role in roles:
        arena.add_role(role)
    return arena


class Haggle(ChatEpisode):
    """Buyer and Seller take turns; each has a limit of its own; the market comments on every turn."""

    def get_initial_role(self, artifact, state):
        return "Buyer"

    def get_initial_prompt(self, arena, artifact, state):
        return f"For sale: {artifact}."

    def get_next_role(self, artifact, state):
        return "Seller" if state.current_role == "Buyer" else "Buyer"

    def get_observation(self, role_id, arena, artifact, state):
        return {"Buyer": "Your limit: 9.", "Seller": "Your cost: 4."}[role_id] if state.turn < 2 else ""

    async def env_response(self, arena, artifact, state):
        return f"(turn {state.turn})"

    def is_done(self, artifact, state):
        return state.last_completion_text == "Deal."


async def haggled(client: MockInferenceClient, max_turns: int = -1) -> Rollout:
    arena = arena_of(client, Role("Buyer", "You buy.", temperature=0.8), Role("Seller"))
    arena.add_episode("haggle", Haggle(max_turns))
    return (await arena.run_episode("haggle", "a lamp")).rollout


async def test_a_chat_of_three_turns_message_by_message():
    client = MockInferenceClient(ScriptedPlayer("Five?", "Seven.", "Deal."))
    rollout = await haggled(client)
    assert rollout.error is None
    assert [(s.role_id, s.index, s.completion_text) for s in rollout.steps] == [
        ("Buyer", 0, "Five?"),
        ("Seller", 1, "Seven."),
        ("Buyer", 2, "Deal."),
    ]
    buyer_first = [
        {"role": "system", "content": "You buy."},
        {"role": "user", "content": "For sale: a lamp.\n\nYour limit: 9."},
    ]
    assert [step.prompt for step in rollout.steps] == [
        buyer_first,
        [{"role": "user", "content": "For sale: a lamp.\n\nBuyer: Five?\n\n(turn 1)\n\nYour cost: 4."}],
        [
            *buyer_first,
            {"role": "assistant", "content": "Five?"},
            {"role": "user", "content": "(turn 1)\n\nSeller: Seven.\n\n(turn 2)"},
        ],
    ]
    assert [call.messages for call in client.calls] == [tuple(step.prompt) for step in rollout.steps]
    assert [call.temperature for call in client.calls] == [0.8, 1.0, 0.8]
    assert not rollout.truncated


async def test_a_later_turn_hands_the_client_the_tokens_of_the_earlier_one():
    client = MockInferenceClient(ScriptedPlayer("Five?", "Seven.", "Six?", "Deal."))
    rollout = await haggled(client)
    first, second, third, fourth = rollout.steps
    assert client.calls[0].prefix is None
    assert client.calls[1].prefix is None  # another role's tokens are no use to it
    for earlier, later in [(first, third), (second, fourth)]:
        prefix = client.calls[later.index].prefix
        assert prefix is not None
        assert prefix.token_ids == earlier.prompt_token_ids + earlier.completion_token_ids
        assert prefix.messages == len(earlier.prompt) + 1
        assert prefix.ended


async def test_max_turns_truncates_and_done_does_not():
    truncated = await haggled(MockInferenceClient(ScriptedPlayer("Five?", "Seven.", "Deal.")), max_turns=2)
    assert truncated.truncated
    assert len(truncated.steps) == 2
    # A game that ends by its own rules on its last turn is done, not cut off.
    done = await haggled(MockInferenceClient(ScriptedPlayer("Five?", "Deal.")), max_turns=2)
    assert not done.truncated
    assert done.error is None


@pytest.mark.parametrize("turns", [0, -2])
def test_a_chat_without_turns_is_refused(turns):
    with pytest.raises(EpisodeError, match="max_turns"):
        Haggle(turns)


class Guess(MultiTurnEpisode):
    """One role guesses a number; the environment says higher or lower."""

    def get_initial_role(self, artifact, state):
        return "Guesser"

    def get_initial_prompt(self, arena, artifact, state):
        return "Guess my number."

    async def env_response(self, arena, artifact, state):
        guess = int(state.last_completion_text)
        state.done = guess == artifact
        return "" if state.done else "higher" if guess < artifact else "lower"


async def test_multi_turn_is_one_role_and_an_environment():
    arena = arena_of(MockInferenceClient(ScriptedPlayer("5", "8", "7")), Role("Guesser"))
    arena.add_episode("guess", Guess())
    rollout = (await arena.run_episode("guess", 7)).rollout
    assert rollout.error is None
    assert [message["content"] for message in rollout.steps[-1].prompt] == [
        "Guess my number.",
        "5",
        "higher",
        "8",
        "lower",
    ]
    assert rollout.roles == ["Guesser"]


class Echo(SingleTurnEpisode):
    def get_initial_role(self, artifact, state):
        return "A"

    def get_initial_prompt(self, arena, artifact, state):
        return f"Say {artifact}"

    def get_extras(self, state):
        return {"done": state.done, "said": state.last_completion_text, "turn": state.turn}


class ShownEcho(Echo):
    def get_examples(self, role_id, artifact, state):
        return [(f"Say {role_id}", role_id)]


async def test_single_turn_shows_its_examples_before():
    client = MockInferenceClient(ScriptedPlayer("ok"))
    arena = Arena(client)
    arena.add_role(Role("A", "Be brief."))
    arena.add_episode("echo", ShownEcho())
    result = await arena.run_episode("echo", "b")
    assert [message["content"] for message in result.rollout.steps[0].prompt] == [
        "Be brief.",
        "Say A",
        "A",
        "Say b",
    ]


async def test_single_turn_asks_once():
    client = MockInferenceClient(ScriptedPlayer("ok"))
    arena = arena_of(client, Role("A", "sys", temperature=0.5, max_tokens=7))
    arena.add_episode("echo", Echo())
    result = await Echo().generate(arena, "x", meta={"why": "test"})
    (call,) = client.calls
    assert call.messages == ({"role": "system", "content": "sys"}, {"role": "user", "content": "Say x"})
    assert (call.role_id, call.temperature, call.max_tokens) == ("A", 0.5, 7)
    assert result.rollout.extras == {"done": True, "said": "ok", "turn": 1}
    assert result.rollout.meta == {"why": "test"}


def test_the_type_of_an_episode_is_its_class_name():
    assert Echo().episode_type == "echo"

    class RedBlueEpisode(Echo):
        pass

    assert RedBlueEpisode().episode_type == "redblue"


@dataclass
class ScoredState(EpisodeState):
    score: int = 0


class OwnState(Echo):
    """Returns a state of its own, made from nothing but what it knows."""

    def init_state(self, state, artifact):
        return ScoredState(score=3)

    def get_extras(self, state):
        return {"score": state.score, "chance": state.rng.random(), **super().get_extras(state)}


async def test_a_state_of_ones_own_sees_the_steps_and_the_keyed_chance():
    async def extras() -> dict[str, object]:
        arena = arena_of(MockInferenceClient(ScriptedPlayer("ok")), Role("A"))
        arena.add_episode("own", OwnState())
        return (await arena.run_episode("own", "x")).rollout.extras

    first = await extras()
    assert (first["score"], first["said"], first["turn"]) == (3, "ok", 1)
    assert first == await extras()  # also the chance


class Forgetful(Episode):
    async def rollout(self, arena, artifact, state):
        await self.call_model("A", "hello", arena)


async def test_an_episode_that_returns_no_state_is_told_so():
    arena = arena_of(MockInferenceClient(ScriptedPlayer("ok")), Role("A"))
    arena.add_episode("forgetful", Forgetful())
    rollout = (await arena.run_episode("forgetful", "x")).rollout
    assert "Forgetful.rollout() returned None; it must return the episode's state" in (rollout.error or "")
    assert len(rollout.steps) == 1


class Dice(Episode):
    async def rollout(self, arena, artifact, state):
        state.data["rolls"] = [state.rng.randrange(10**6) for _ in range(3)]
        return state

    def get_extras(self, state):
        return dict(state.data)


async def test_chance_is_keyed_by_the_request():
    async def rolls(seed: int) -> list[object]:
        arena = Arena(MockInferenceClient(str), seed=seed)
        arena.add_episode("dice", Dice())
        random.seed()  # what the process draws elsewhere doesn't matter
        results = await arena.generate_rollouts([EpisodeRequest("dice")] * 2)
        return [result.rollout.extras["rolls"] for result in results]

    first, second = await rolls(0)
    assert first != second
    assert [first, second] == await rolls(0)
    assert first not in await rolls(1)


async def test_sampling_can_be_overridden_for_one_call():
    class Hot(Episode):
        async def rollout(self, arena, artifact, state):
            await self.call_model("A", "x", arena, temperature=1.5, max_tokens=3)
            return state

    client = MockInferenceClient(ScriptedPlayer("ok"))
    arena = arena_of(client, Role("A", temperature=0.5, max_tokens=7))
    arena.add_episode("hot", Hot())
    rollout = (await arena.run_episode("hot")).rollout
    assert (client.calls[0].temperature, client.calls[0].max_tokens) == (1.5, 3)
    assert rollout.steps[0].temperature == 1.5
