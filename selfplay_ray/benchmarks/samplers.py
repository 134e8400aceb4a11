"""Whom a benchmark asks: an engine in this process, or a server over HTTP, for as many replies and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import openai

from selfplay_ray.benchmarks.load import Tokens, request, together
from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.endpoints import Endpoint, Endpoints
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.token_requests import continue_tokens, sampling


class Sampler(Protocol):
    async def sample(self, prompts: Sequence[Tokens], samples: int, tokens: int) -> list[Tokens]:
        """``samples`` replies of ``tokens`` tokens to each of ``prompts``, all asked for at once."""
        ...


@dataclass(frozen=True, slots=True)
class InProcess:
    engine: Engine
    adapter: str | None

    async def sample(self, prompts: Sequence[Tokens], samples: int, tokens: int) -> list[Tokens]:
        every = [prompt for prompt in prompts for _ in range(samples)]
        asked = [request(prompt, tokens, seed, self.adapter) for seed, prompt in enumerate(every)]
        return await together(self.engine, asked)


@dataclass(frozen=True, slots=True)
class OverHTTP:
    endpoints: Endpoints
    model: str

    async def sample(self, prompts: Sequence[Tokens], samples: int, tokens: int) -> list[Tokens]:
        asked = (self._replies(prompt, samples, tokens, samples * i) for i, prompt in enumerate(prompts))
        return [reply for replies in await asyncio.gather(*asked) for reply in replies]

    async def _replies(self, prompt: Tokens, samples: int, tokens: int, seed: int) -> list[Tokens]:
        how = {**sampling(1.0, tokens, seed), "n": samples}

        async def ask(endpoint: Endpoint, timeout: openai.Timeout) -> list[Tokens]:
            ending = {"ignore_eos": True}
            answer = await continue_tokens(endpoint, timeout, self.model, prompt, how, ending=ending)
            return [tuple(choice.token_ids or ()) for choice in answer.choices]

        replies = await self.endpoints.ask(ask)
        if [len(reply) for reply in replies] != [tokens] * samples:
            lengths = ", ".join(str(len(reply)) for reply in replies)
            raise InferenceError(f"asked for {samples} replies of {tokens} tokens, it gave such of {lengths}")
        return replies
