"""How an episode's model calls reach an engine: messages to tokens, tokens to an engine, and the way back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.runtime import ModelClient
from selfplay_ray.types import Completion, ModelCall

if TYPE_CHECKING:
    from selfplay_ray.inference.engine import Engine


class EngineClient(ModelClient):
    """A client of engines that take tokens, in this process or behind actors.

    ``generate`` runs one request; ``policy_version`` tells the weights in use. ``max_tokens`` bounds a reply
    whose call sets no bound.
    """

    def __init__(
        self,
        chat: ChatTokenizer,
        generate: Callable[[GenerationRequest], Awaitable[Generation]],
        policy_version: Callable[[], int],
        max_tokens: int,
    ) -> None:
        self._chat = chat
        self._generate = generate
        self._policy_version = policy_version
        self._max_tokens = max_tokens

    @classmethod
    def for_engine(cls, engine: Engine, max_tokens: int = 256) -> EngineClient:
        """A client of an engine in this process."""
        chat = ChatTokenizer(engine.model_path)
        return cls(chat, engine.generate, lambda: engine.policy_version, max_tokens)

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
        )
