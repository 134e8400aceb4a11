"""A model client for any endpoint that speaks vLLM's dialect of OpenAI's API: real vLLM, or ``selfplay serve``."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import openai

from selfplay_ray.inference.adapter_names import version_in
from selfplay_ray.inference.balance import RetrySettings
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.endpoints import Endpoint, Endpoints
from selfplay_ray.inference.openai_answers import Answer, checked_completion, parse
from selfplay_ray.inference.token_requests import (
    ASK_FOR_TOKENS,
    NEUTRAL,
    LogprobsModes,
    continue_tokens,
    sampling,
)
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import Completion, ModelCall


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
        self._modes = LogprobsModes()
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
            await self._modes.check(endpoint, timeout, model, call.temperature)
            if self._chat:
                answer = await continue_tokens(endpoint, timeout, model, prompt, self._sampling(call))
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
        return sampling(call.temperature, call.max_tokens or self._max_tokens, call.seed)


async def _reply(
    endpoint: Endpoint, timeout: openai.Timeout, model: str, call: ModelCall, how: dict[str, Any]
) -> Answer:
    """Messages in, tokens out."""
    messages: list[Any] = [dict(message) for message in call.messages]
    raw = await endpoint.client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages,
        logprobs=True,
        extra_body=NEUTRAL | ASK_FOR_TOKENS,
        timeout=timeout,
        **how,
    )
    return parse(raw.content, endpoint.url)
