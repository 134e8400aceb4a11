"""The client, against our server, or against a real vLLM: VLLM_URL is its address up to /v1.

A real vLLM must serve smollm2-135m in float32, with runtime LoRA of rank 8 or more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import mlx.core as mx
import numpy as np
import pytest
from server_running import LORA, running_server

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.openai_client import OpenAIClient
from selfplay_ray.inference.peft import save_peft
from selfplay_ray.lora import attach_lora, read_adapter, write_adapter
from selfplay_ray.models import load_model
from selfplay_ray.types import Completion, Message, ModelCall, TokenPrefix

HI = Message(role="user", content="Tell me a story about a dog.")
CALL = ModelCall((HI,), role_id="a", temperature=1.0, max_tokens=12, seed=2**63 + 7)


@dataclass(frozen=True, slots=True)
class Served:
    """An endpoint, what it calls its model, and where that lies."""

    url: str
    model: str
    folder: Path

    def client(self, model: str = "", **settings: object) -> OpenAIClient:
        settings = {"tokenizer": ChatTokenizer(self.folder), **settings}
        return OpenAIClient(model or self.model, self.url, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    url = os.environ.get("VLLM_URL")
    if url:
        models = httpx.get(f"{url}/models", timeout=10).json()["data"]
        name = next(model["id"] for model in models if not model["parent"])
        yield Served(url.rstrip("/"), name, request.getfixturevalue("smollm2"))
        return
    tiny = request.getfixturevalue("tiny")
    with running_server(tiny) as running:
        yield Served(f"{running.url}/v1", "tiny", tiny)


def true_logprobs(
    folder: Path,
    completion: Completion,
    temperature: float = 1.0,
    adapter: dict[str, np.ndarray] | None = None,
) -> list[float]:
    """What one full forward pass makes of the completion's tokens."""
    model = load_model(folder)[0]
    if adapter:
        attach_lora(model, LORA, seed=0)
        write_adapter(model, adapter)
    prompt, tokens = completion.prompt_token_ids, completion.completion_token_ids
    logits = model(mx.array([*prompt, *tokens])[None])[0, len(prompt) - 1 : -1]
    scaled = np.array(logits.astype(mx.float32)).astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    logprobs = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return [float(row[token]) for row, token in zip(logprobs, tokens, strict=True)]


async def test_a_completion_has_true_logprobs(served: Served):
    async with served.client() as client:
        completion = await client.complete(CALL)
        assert completion.prompt_token_ids == ChatTokenizer(served.folder).encode([HI])[0]
        assert 0 < len(completion.completion_token_ids) <= 12
        assert completion.completion_logprobs == pytest.approx(
            true_logprobs(served.folder, completion), abs=1e-3
        )
        assert (completion.policy_version, client.get_policy_version()) == (0, 0)
        assert completion.extended
        again = await client.complete(CALL)
        assert again.completion_token_ids == completion.completion_token_ids  # the seed fixes it
        other = await client.complete(replace(CALL, seed=1))
        assert other.completion_token_ids != completion.completion_token_ids


async def test_at_another_temperature_logprobs_are_those_drawn_with_or_it_is_an_error(served: Served):
    async with served.client() as client:
        try:
            completion = await client.complete(replace(CALL, temperature=0.6))
        except InferenceError as error:
            assert "--logprobs-mode processed_logprobs" in str(error)  # noqa: PT017
            return
        expected = true_logprobs(served.folder, completion, temperature=0.6)
        assert completion.completion_logprobs == pytest.approx(expected, abs=1e-3)


async def test_a_later_turn_is_sent_as_the_tokens_of_the_earlier_ones(served: Served):
    async with served.client() as client:
        first = await client.complete(CALL)
        tokens = first.prompt_token_ids + first.completion_token_ids
        ended = first.finish_reason == "stop"
        said = Message(role="assistant", content=first.text)
        prefix = TokenPrefix(tokens, messages=2, ended=ended)
        more = (HI, said, Message(role="user", content="Go on."))
        second = await client.complete(replace(CALL, messages=more, prefix=prefix))
        assert second.extended
        assert second.prompt_token_ids[: len(tokens)] == tokens
        assert second.completion_logprobs == pytest.approx(true_logprobs(served.folder, second), abs=1e-3)


async def test_without_a_tokenizer_the_endpoint_makes_the_prompt(served: Served):
    async with served.client(tokenizer=None) as client, served.client() as knowing:
        completion, known = await client.complete(CALL), await knowing.complete(CALL)
        assert completion.prompt_token_ids == known.prompt_token_ids
        assert completion.completion_token_ids == known.completion_token_ids
        assert completion.text == known.text
        prefix = TokenPrefix(known.prompt_token_ids, messages=1, ended=False)
        assert not (await client.complete(replace(CALL, prefix=prefix))).extended


async def test_an_adapter_of_our_learners_under_a_versioned_name(served: Served, tmp_path: Path):
    model = load_model(served.folder)[0]
    attach_lora(model, LORA, seed=0)
    rng = np.random.default_rng(0)
    adapter = {
        name: (value + 0.02 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in read_adapter(model).items()
    }
    save_peft(tmp_path / "live@v3", adapter, LORA.scale, served.model)
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as http, served.client("live@v3") as client:
        body = {"lora_name": "live@v3", "lora_path": str(tmp_path / "live@v3")}
        loaded = await http.post("load_lora_adapter", json=body)
        assert loaded.status_code == 200, loaded.text
        try:
            completion = await client.complete(CALL)
            assert (completion.policy_version, client.get_policy_version()) == (3, 3)
            expected = true_logprobs(served.folder, completion, adapter=adapter)
            assert completion.completion_logprobs == pytest.approx(expected, abs=1e-3)
            assert completion.completion_logprobs != pytest.approx(
                true_logprobs(served.folder, completion), abs=0.01
            )
        finally:
            await http.post("unload_lora_adapter", json={"lora_name": "live@v3"})


async def test_an_unknown_model_is_told_at_once(served: Served):
    async with served.client("nobody") as client:
        with pytest.raises(InferenceError, match=r"answered 404: .*nobody"):
            await client.complete(CALL)


def test_a_client_may_be_used_from_one_event_loop_after_another(served: Served):
    client = served.client()

    async def ask() -> Sequence[int]:
        async with client:
            return (await client.complete(CALL)).completion_token_ids

    assert asyncio.run(ask()) == asyncio.run(ask())


def test_a_local_client_knows_where_to_look():
    client = OpenAIClient.for_local("m", port=8123)
    assert [endpoint.url for endpoint in client.endpoints.endpoints] == ["http://127.0.0.1:8123/v1"]
