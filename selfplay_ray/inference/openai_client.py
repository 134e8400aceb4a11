"""A model client for any endpoint that speaks vLLM's dialect of OpenAI's API: real vLLM, or ``selfplay serve``."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import openai

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.adapter_names import version_in
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.endpoints import Endpoint, Endpoints, RetrySettings
from selfplay_ray.inference.openai_answers import Answer, checked_completion, parse
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import Completion, ModelCall

Tokens = tuple[int, ...]

SAME = 1e-3
"""Logprobs nearer than this are the same; at another temperature they never are that near."""
NEUTRAL: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent always, with top_p 1: what is left out, vLLM takes from the model's generation_config.json."""
ASK_FOR_TOKENS: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}


class OpenAIClient(ModelClient):
    """Answers model calls through one endpoint or several that serve the same ``model``.

    With a ``tokenizer`` (a model's folder or name, or a ``ChatTokenizer``) prompts are sent as tokens, and a
    conversation's earlier tokens are never tokenized again; use it for training. Without, messages are sent, and
    the endpoint's chat template makes a new prompt of them every time.

    Every token must come with its id and the logprob of the distribution it was drawn from. vLLM gives those from
    before the temperature unless it was started with ``--logprobs-mode processed_logprobs``; the first call at a
    temperature other than 0 and 1 finds out, and fails where they are of no use.

    Args:
        model: what the endpoint calls the model or adapter. Its policy version is the endpoint's
            ``policy_versions`` where it tells them, else the number at the end of the name (``live@v12``), else 0.
        base_url: the address up to ``/v1``, or several.
        max_tokens: for calls that set no bound.
    """

    def __init__(
        self,
        model: str,
        base_url: str | Sequence[str],
        api_key: str = "",
        *,
        tokenizer: ChatTokenizer | str | None = None,
        max_tokens: int = 256,
        retry: RetrySettings | None = None,
    ) -> None:
        urls = [base_url] if isinstance(base_url, str) else list(base_url)
        self.endpoints = Endpoints(urls, api_key, retry)
        self._chat = ChatTokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._max_tokens = max_tokens
        self._processed: dict[Endpoint, bool] = {}  # whether logprobs are of the distribution drawn from
        self._seen_version = 0
        self.use(model)

    @classmethod
    def for_local(
        cls,
        model: str,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str = "",
        tokenizer: ChatTokenizer | str | None = None,
        max_tokens: int = 256,
    ) -> OpenAIClient:
        """A client of a server on this machine, such as ``selfplay serve``."""
        url = f"http://{host}:{port}/v1"
        return cls(model, url, api_key, tokenizer=tokenizer, max_tokens=max_tokens)

    def use(self, model: str) -> None:
        """Ask for another model or adapter from the next call on."""
        self._model, self._seen_version = model, version_in(model) or 0

    def get_policy_version(self) -> int:
        """The version in the model's name, or the newest that an answer told."""
        return self._seen_version

    async def complete(self, call: ModelCall) -> Completion:
        model = self._model  # of the whole call, whatever is published meanwhile
        prompt, extended = (
            self._chat.encode(call.messages, call.prefix) if self._chat else ((), call.prefix is None)
        )

        async def ask(endpoint: Endpoint, timeout: openai.Timeout) -> Completion:
            await self._check_logprobs_mode(endpoint, timeout, model, call.temperature)
            if self._chat:
                answer = await _continue(endpoint, timeout, model, prompt, self._sampling(call))
            else:
                answer = await _reply(endpoint, timeout, model, call, self._sampling(call))
            return checked_completion(answer, endpoint.url, model, self._chat, prompt, extended)

        completion = await self.endpoints.ask(ask, affinity=prompt or str(call.messages))
        if model == self._model:
            self._seen_version = max(self._seen_version, completion.spans[-1].version)
        return completion

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.endpoints.aclose()

    async def __aenter__(self) -> OpenAIClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _sampling(self, call: ModelCall) -> dict[str, Any]:
        seed = call.seed - (1 << 64) if call.seed >= 1 << 63 else call.seed  # vLLM takes 64 bits with a sign
        limit = call.max_tokens or self._max_tokens
        return {"temperature": call.temperature, "max_tokens": limit, "seed": seed, "top_p": 1.0}

    async def _check_logprobs_mode(
        self, endpoint: Endpoint, timeout: openai.Timeout, model: str, temperature: float
    ) -> None:
        """Raise InferenceError if the endpoint's logprobs are not of the softmax at ``temperature``."""
        if temperature in (0.0, 1.0):
            return
        if endpoint not in self._processed:
            self._processed[endpoint] = await _gives_processed_logprobs(endpoint, timeout, model)
        if not self._processed[endpoint]:
            raise InferenceError(
                f"{endpoint.url} gives logprobs from before the temperature, which are not those that tokens were "
                f"drawn with at temperature {temperature:g}: start vLLM with --logprobs-mode processed_logprobs, "
                f"or sample at temperature 1"
            )


async def _continue(
    endpoint: Endpoint,
    timeout: openai.Timeout,
    model: str,
    prompt: Tokens,
    sampling: dict[str, Any],
    top: int = 0,
) -> Answer:
    """Tokens in, tokens out."""
    raw = await endpoint.client.completions.with_raw_response.create(
        model=model,
        prompt=list(prompt),
        logprobs=top,
        extra_body=NEUTRAL | ASK_FOR_TOKENS,
        timeout=timeout,
        **sampling,
    )
    return parse(raw.content, endpoint.url)


async def _reply(
    endpoint: Endpoint, timeout: openai.Timeout, model: str, call: ModelCall, sampling: dict[str, Any]
) -> Answer:
    """Messages in, tokens out."""
    messages: list[Any] = [dict(message) for message in call.messages]
    raw = await endpoint.client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages,
        logprobs=True,
        extra_body=NEUTRAL | ASK_FOR_TOKENS,
        timeout=timeout,
        **sampling,
    )
    return parse(raw.content, endpoint.url)


async def _gives_processed_logprobs(endpoint: Endpoint, timeout: openai.Timeout, model: str) -> bool:
    """Whether logprobs change with the temperature: how likely the likeliest token is, at 1 and at 2.

    There is no telling from outside how vLLM was started, so it is tried, once for each endpoint.
    """
    likeliest = []
    for temperature in (1.0, 2.0):
        sampling = {"temperature": temperature, "max_tokens": 1, "seed": 0, "top_p": 1.0}
        answer = await _continue(endpoint, timeout, model, (0,), sampling, top=1)
        logprobs = answer.choices[0].logprobs if answer.choices else None
        if logprobs is None or not logprobs.top_logprobs:
            raise InferenceError(
                f"{endpoint.url} returned no logprobs: it must allow at least 1 (--max-logprobs)"
            )
        likeliest.append(max(logprobs.top_logprobs[0].values()))
    return abs(likeliest[0] - likeliest[1]) > SAME
