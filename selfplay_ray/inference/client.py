"""How an episode's model calls reach an engine: messages to tokens, tokens to an engine, and the way back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.requests import LIVE, Generation, GenerationRequest
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import Completion, ModelCall

if TYPE_CHECKING:
    from selfplay_ray.inference.engine import Engine


LoadAdapter = Callable[[Mapping[str, np.ndarray], int], Awaitable[None]]


class EngineClient(ModelClient):
    """A client of engines that take tokens, in this process or behind actors.

    Calls of a role are answered by the adapter that is being trained, those without one (judges') by the base model,
    which stays as it is.

    ``generate`` runs one request; ``policy_version`` tells the weights in use. ``max_tokens`` bounds a reply
    whose call sets no bound. ``load_adapter`` gives an engine in this process new weights.
    """

    def __init__(
        self,
        chat: ChatTokenizer,
        generate: Callable[[GenerationRequest], Awaitable[Generation]],
        policy_version: Callable[[], int],
        max_tokens: int,
        load_adapter: LoadAdapter | None = None,
    ) -> None:
        self._chat = chat
        self._generate = generate
        self._policy_version = policy_version
        self._max_tokens = max_tokens
        self._load_adapter = load_adapter

    @classmethod
    def for_engine(cls, engine: Engine, max_tokens: int = 256) -> EngineClient:
        """A client of an engine in this process."""
        chat = ChatTokenizer(engine.model_path)
        return cls(chat, engine.generate, lambda: engine.policy_version, max_tokens, engine.load_adapter)

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Give the engine in this process new weights.

        Raises:
            AdapterError: they don't fit.
            InferenceError: this client's engines get theirs from a broadcaster.
        """
        if self._load_adapter is None:
            raise InferenceError(
                "this client's engines are given new weights by a broadcaster, not by the client"
            )
        await self._load_adapter(weights, version)

    async def complete(self, call: ModelCall) -> Completion:
        prompt, extended = self._chat.encode(call.messages, call.prefix)
        generation = await self._generate(self._request(call, prompt))
        return Completion(
            text=self._chat.decode(generation.token_ids),
            prompt_token_ids=prompt,
            completion_token_ids=generation.token_ids,
            completion_logprobs=generation.logprobs,
            spans=generation.spans,
            finish_reason=generation.finish_reason,
            extended=extended,
        )

    def get_policy_version(self) -> int:
        return self._policy_version()

    def _request(self, call: ModelCall, prompt: tuple[int, ...]) -> GenerationRequest:
        return GenerationRequest(
            id=f"{call.role_id or 'judge'}-{call.seed:016x}",
            prompt_token_ids=prompt,
            max_tokens=call.max_tokens or self._max_tokens,
            temperature=call.temperature,
            seed=call.seed,
            priority=call.priority,
            adapter=LIVE if call.role_id else None,
        )
