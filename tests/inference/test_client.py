"""From a model call to a completion, on the real model."""

from __future__ import annotations

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.types import Message, ModelCall, PolicySpan, TokenPrefix

QUESTION = Message(role="user", content="What is the capital of France?")


def call(*messages: Message, prefix: TokenPrefix | None = None, max_tokens: int | None = None) -> ModelCall:
    return ModelCall(messages, "Player", 0.0, max_tokens, seed=3, prefix=prefix, priority=2)


async def test_a_conversation_runs_only_what_is_new(engine: Engine) -> None:
    client = EngineClient.for_engine(engine, max_tokens=20)
    first = await client.complete(call(QUESTION))
    assert first.text == "The capital of France is Paris."
    assert first.finish_reason == "stop"
    assert first.policy_version == client.get_policy_version() == engine.policy_version
    answer, thanks = (
        Message(role="assistant", content=first.text),
        Message(role="user", content="And of Italy?"),
    )
    so_far = first.prompt_token_ids + first.completion_token_ids
    before = engine.stats().prefilled_tokens
    second = await client.complete(call(QUESTION, answer, thanks, prefix=TokenPrefix(so_far, 2, ended=True)))
    assert second.extended
    assert second.prompt_token_ids[: len(so_far)] == so_far
    # A reply this short is run again, its prompt isn't. The last token of a prompt isn't prefilled: decoding begins
    # with it.
    new = len(second.prompt_token_ids) - len(first.prompt_token_ids)
    assert engine.stats().prefilled_tokens - before == new
    assert "Rome" in second.text


async def test_a_call_becomes_a_request_with_all_it_says(chat: ChatTokenizer) -> None:
    asked: list[GenerationRequest] = []

    async def generate(request: GenerationRequest) -> Generation:
        asked.append(request)
        return Generation((28, 2), (-0.5, -0.1), (PolicySpan(0, 2, 4),), "stop")

    client = EngineClient(chat, generate, lambda: 4, max_tokens=50)
    completion = await client.complete(call(QUESTION))
    await client.complete(call(QUESTION, max_tokens=7))
    assert [request.max_tokens for request in asked] == [50, 7]
    assert (asked[0].seed, asked[0].temperature, asked[0].priority) == (3, 0.0, 2)
    assert asked[0].id == "Player-0000000000000003"
    assert asked[0].prompt_token_ids == completion.prompt_token_ids == chat.encode([QUESTION])[0]
    assert completion.text == chat.decode([28])
    assert completion.completion_token_ids == (28, 2)
    assert completion.completion_logprobs == (-0.5, -0.1)
    assert completion.policy_version == client.get_policy_version() == 4
