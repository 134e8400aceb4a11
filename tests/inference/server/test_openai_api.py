"""OpenAI's own client against the server, as it is: chats, completions, streams."""

from __future__ import annotations

import asyncio
import math

import openai
import pytest
from server_running import Running

from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.types import Message

SAY = [{"role": "user", "content": "Say something."}]


def generated(server: Running, prompt: tuple[int, ...], **settings: object) -> Generation:
    """What the engine answers when it is asked directly."""
    asked = {"max_tokens": 8, "temperature": 1.0, "seed": 5, "adapter": None, **settings}
    return asyncio.run(server.engine.generate(GenerationRequest("direct", prompt, **asked)))  # type: ignore[arg-type]


def test_a_chat_is_what_the_engine_says(client: openai.OpenAI, server: Running):
    answer = client.chat.completions.create(
        model="tiny", messages=SAY, max_tokens=8, seed=5, logprobs=True, extra_body={"return_token_ids": True}
    )
    prompt, _ = server.chat.encode([Message(role="user", content="Say something.")])
    direct = generated(server, prompt)
    (choice,) = answer.choices
    assert choice.message.content == server.chat.decode(direct.token_ids)
    assert choice.token_ids == list(direct.token_ids)
    assert [entry.logprob for entry in choice.logprobs.content] == pytest.approx(direct.logprobs, abs=1e-5)
    assert answer.prompt_token_ids == list(prompt)
    assert choice.policy_versions == [{"start": 0, "end": 8, "version": 0}]
    assert (choice.finish_reason, answer.model) == ("length", "tiny")
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 8,
        "total_tokens": len(prompt) + 8,
    }


def test_choices_differ_and_are_fixed_by_the_seed(client: openai.OpenAI):
    def ask(seed: int, n: int) -> list[str]:
        answer = client.chat.completions.create(model="tiny", messages=SAY, max_tokens=6, seed=seed, n=n)
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    three = ask(7, 3)
    assert len(set(three)) == 3
    assert ask(7, 3) == three
    assert ask(8, 1) == [three[1]]  # choice i is drawn with seed + i


def test_the_likeliest_tokens_are_told_best_first(client: openai.OpenAI, server: Running):
    answer = client.chat.completions.create(
        model="tiny", messages=SAY, max_tokens=4, temperature=0.5, seed=1, logprobs=True, top_logprobs=5
    )
    for entry in answer.choices[0].logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert entry.logprob <= values[0] + 1e-6
        assert bytes(entry.bytes).decode() == entry.token
    greedy = client.chat.completions.create(
        model="tiny", messages=SAY, max_tokens=4, temperature=0, logprobs=True, top_logprobs=1
    )
    for entry in greedy.choices[0].logprobs.content:
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob)


@pytest.mark.parametrize("stop", [None, "stop"])
def test_a_streamed_chat_is_the_chat(client: openai.OpenAI, stop: str | None):
    asked = {"model": "tiny", "messages": SAY, "max_tokens": 12, "seed": 3, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**asked)
    if stop:  # end the first choice somewhere in its middle
        asked["stop"] = whole.choices[0].message.content[5:9]
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].stop_reason == asked["stop"]
    texts, logprobs, reasons, versions = ["", ""], [[], []], {}, {}
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content
        logprobs[choice.index] += (
            [entry.logprob for entry in choice.logprobs.content] if choice.logprobs else []
        )
        if choice.finish_reason:
            reasons[choice.index], versions[choice.index] = choice.finish_reason, choice.policy_versions
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert logprobs[choice.index] == pytest.approx([e.logprob for e in choice.logprobs.content], abs=1e-5)
        assert reasons[choice.index] == choice.finish_reason
        assert versions[choice.index] == choice.policy_versions
    assert len(chunks) > 6  # it did come in pieces
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], whole.usage.completion_tokens)


def test_a_completion_takes_text_and_tokens_one_and_many(client: openai.OpenAI, server: Running):
    texts = ["Once upon a time", "The end"]
    tokens = [list(server.chat.encode_text(text)) for text in texts]
    asked = {"model": "tiny", "max_tokens": 5, "seed": 2, "extra_body": {"return_token_ids": True}}
    shapes = [texts[0], tokens[0], texts, tokens]
    one, one_tokens, many, many_tokens = (
        client.completions.create(prompt=prompt, **asked).choices for prompt in shapes
    )
    assert [c.text for c in many] == [c.text for c in many_tokens]
    assert one[0].text == one_tokens[0].text == many[0].text
    assert [choice.prompt_token_ids for choice in many] == tokens
    several = client.completions.create(prompt=tokens, n=2, **asked).choices
    assert [choice.prompt_token_ids for choice in several] == [tokens[0], tokens[0], tokens[1], tokens[1]]
    assert [several[0].text, several[2].text] == [choice.text for choice in many]


def test_a_completion_says_16_tokens_unless_told_otherwise(client: openai.OpenAI):
    answer = client.completions.create(model="tiny", prompt="x", logprobs=2, seed=0)
    logprobs = answer.choices[0].logprobs
    assert answer.usage.completion_tokens == len(logprobs.tokens) == len(logprobs.token_logprobs) == 16
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert len(top) in (2, 3)
        assert top[token] == pytest.approx(logprob, abs=1e-5)
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[-1] == len("".join(logprobs.tokens[:-1]))


def test_a_streamed_completion_is_the_completion(client: openai.OpenAI):
    asked = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 9, "seed": 4, "logprobs": 0}
    whole = client.completions.create(**asked)
    texts, offsets = ["", ""], [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


def test_models_are_listed(client: openai.OpenAI):
    (model,) = client.models.list().data
    assert (model.id, model.parent, model.max_model_len) == ("tiny", None, 1024)


def test_errors_are_those_the_client_knows(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=SAY)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert missing.value.body["message"] == "there is no model 'nobody'; known: tiny"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="tiny", messages=SAY, top_p=0.9)
    assert (unsupported.value.param, unsupported.value.type) == ("top_p", "invalid_request_error")
