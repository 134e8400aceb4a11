"""For trying an episode without a model: a client that answers from a function. Nothing it says is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from selfplay_ray.types import Completion, Message, ModelCall, PolicySpan

END_OF_TURN = 256
"""The mock's end-of-turn token; the tokens before it are the bytes of the text."""


class MockInferenceClient:
    """Answers every call with ``response_fn(messages)``.

    Tokens are the UTF-8 bytes of the text and every logprob is -1, so records made from it are well-formed
    and train nothing sensible. ``calls`` keeps what was asked; ``version`` is stamped on every answer.
    """

    def __init__(self, response_fn: Callable[[Sequence[Message]], str]) -> None:
        self.response_fn = response_fn
        self.calls: list[ModelCall] = []
        self.version = 0

    async def complete(self, call: ModelCall) -> Completion:
        self.calls.append(call)
        text = self.response_fn(call.messages)
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in call.messages)
        tokens = (*text.encode(), END_OF_TURN)
        return Completion(
            text=text,
            prompt_token_ids=tuple(prompt.encode()),
            completion_token_ids=tokens,
            completion_logprobs=(-1.0,) * len(tokens),
            spans=(PolicySpan(0, len(tokens), self.version),),
            finish_reason="stop",
        )

    async def load_adapter(self, weights: Mapping[str, object], version: int) -> None:
        """Take note of the version; there is nothing that weights would change."""
        self.version = version

    def get_policy_version(self) -> int:
        return self.version
