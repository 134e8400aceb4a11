"""Tokens in, tokens out at an endpoint, drawn from the model's own distribution, with the logprobs of that one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.endpoints import Endpoint
from selfplay_ray.inference.openai_answers import Answer, parse

SAME = 1e-3
"""Logprobs nearer than this are the same; at another temperature they never are that near."""
NEUTRAL: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent always, with top_p 1: what is left out, vLLM takes from the model's generation_config.json."""
ASK_FOR_TOKENS: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}


def sampling(temperature: float, max_tokens: int, seed: int) -> dict[str, Any]:
    """How tokens are drawn; ``seed`` has 64 bits, and vLLM takes them with a sign."""
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return {"temperature": temperature, "max_tokens": max_tokens, "seed": signed, "top_p": 1.0}


async def continue_tokens(
    endpoint: Endpoint,
    timeout: openai.Timeout,
    model: str,
    prompt: tuple[int, ...],
    how: Mapping[str, Any],
    top: int = 0,
    ending: Mapping[str, Any] | None = None,
) -> Answer:
    """A continuation of ``prompt``, sampled as ``how`` says, with ``top`` of the likeliest tokens at each position.

    ``ending`` are vLLM's parameters that say when it is over.
    """
    raw = await endpoint.client.completions.with_raw_response.create(
        model=model,
        prompt=list(prompt),
        logprobs=top,
        extra_body={**NEUTRAL, **ASK_FOR_TOKENS, **(ending or {})},
        timeout=timeout,
        **how,
    )
    return parse(raw.content, endpoint.url)


class LogprobsModes:
    """What the logprobs of each endpoint are of: vLLM's are from before the temperature, unless it was told otherwise.

    There is no telling from outside how it was started, so it is tried, once for each endpoint.
    """

    def __init__(self) -> None:
        self._processed: dict[Endpoint, bool] = {}

    async def check(
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


async def _gives_processed_logprobs(endpoint: Endpoint, timeout: openai.Timeout, model: str) -> bool:
    """Whether logprobs change with the temperature: how likely the likeliest token is, at 1 and at 2."""
    likeliest = []
    for temperature in (1.0, 2.0):
        how = sampling(temperature, max_tokens=1, seed=0)
        answer = await continue_tokens(endpoint, timeout, model, (0,), how, top=1)
        logprobs = answer.choices[0].logprobs if answer.choices else None
        if logprobs is None or not logprobs.top_logprobs:
            raise InferenceError(
                f"{endpoint.url} returned no logprobs: it must allow at least 1 (--max-logprobs)"
            )
        likeliest.append(max(logprobs.top_logprobs[0].values()))
    return abs(likeliest[0] - likeliest[1]) > SAME
