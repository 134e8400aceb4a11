"""What goes into an engine and what comes out of it: tokens."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from selfplay_ray.errors import InferenceError
from selfplay_ray.types import FinishReason, PolicySpan, check_spans

LIVE = "live"
"""The adapter that is being trained: an engine has it from the start, at first without effect, as version 0."""

SMALLEST_TEMPERATURE = 0.01
"""Below it logits overflow, and the sample is the greedy one anyway."""

TopTokens = tuple[tuple[int, float], ...]
"""The likeliest tokens and their logprobs, best first."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Asks for one continuation of ``prompt_token_ids`` by ``adapter``; None is the base model without any.

    ``temperature`` 0 is greedy; the logprobs are then those of temperature 1. ``seed`` (64 bits) fixes the sample,
    whatever else is being decoded. Higher ``priority`` goes first, then who came first.

    It ends with one of ``stop_token_ids``, with the model's end of turn unless ``ignore_eos``, or with
    ``max_tokens``; before ``min_tokens`` the tokens that would end it have probability 0. ``top_logprobs`` asks for
    that many of the likeliest tokens at each position.

    Raises:
        InferenceError: the prompt is empty, or a number is out of range.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    priority: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    top_logprobs: int = 0
    adapter: str | None = LIVE

    def __post_init__(self) -> None:
        for name in ("prompt_token_ids", "stop_token_ids"):
            object.__setattr__(self, name, self._tokens(name))
        if not self.prompt_token_ids:
            raise InferenceError(f"request {self.id} has an empty prompt")
        if self.max_tokens <= 0:
            raise InferenceError(f"request {self.id} asks for {self.max_tokens} tokens; it needs 1 or more")
        if self.temperature != 0 and not SMALLEST_TEMPERATURE <= self.temperature < float("inf"):
            raise InferenceError(
                f"request {self.id} has temperature {self.temperature}; it needs 0, which is greedy, or "
                f"{SMALLEST_TEMPERATURE} or more"
            )
        if not 0 <= self.min_tokens <= self.max_tokens or self.top_logprobs < 0:
            raise InferenceError(
                f"request {self.id} asks for {self.min_tokens} to {self.max_tokens} tokens and {self.top_logprobs} "
                f"likeliest ones; none may be negative, nor the first above the second"
            )

    def _tokens(self, name: str) -> tuple[int, ...]:
        """A field that may have been given as a list or an array."""
        tokens = getattr(self, name)
        if isinstance(tokens, tuple):
            return tokens
        try:
            return tuple(operator.index(token) for token in tokens)
        except TypeError:
            raise InferenceError(f"{name} of request {self.id} are token ids, not {tokens!r:.60}") from None


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens sampled for one request, the stop token included.

    ``logprobs[i]`` is that of ``token_ids[i]`` under the softmax it was drawn from; ``spans`` say which policy
    version drew which tokens. ``top_logprobs`` has an entry a token, empty where none was asked for.
    ``seconds_to_first_token`` counts from when the request was made, and is no part of what makes two equal.

    Raises:
        InferenceError: a logprob or a version is missing.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[PolicySpan, ...]
    finish_reason: FinishReason
    top_logprobs: tuple[TopTokens, ...] = ()
    seconds_to_first_token: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.token_ids):
            raise InferenceError(f"{len(self.token_ids)} tokens came with {len(self.logprobs)} logprobs")
        check_spans(self.spans, len(self.token_ids), "a generation")


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Some tokens of a generation, as they come: for each its logprob, policy version and likeliest alternatives.

    ``finish_reason`` is set on the last.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    top_logprobs: tuple[TopTokens, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine is doing, and has done since it started.

    ``running`` and ``waiting`` count requests. ``prompt_tokens`` were asked, ``prefilled_tokens`` of them had to be
    run before decoding, and ``reused_tokens`` not, as their keys and values were forked or kept; the rest are
    prompts' last tokens, with which decoding begins. ``busy_seconds`` include prefill and decoding.

    ``kv_bytes`` hold keys and values, ``prefix_bytes`` of them those kept for later prompts; the engine has
    ``kv_capacity_bytes`` for them. ``prefix_queries`` count prompts that might have begun with kept ones,
    ``prefix_hits`` those that did. ``swaps`` are changes of adapters, ``swap_seconds`` what they took, and
    ``restarts`` the requests whose prompt had to be run again because of one. ``adapters`` are loaded.
    """

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    kv_bytes: int = 0
    prefix_bytes: int = 0
    kv_capacity_bytes: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    swaps: int = 0
    swap_seconds: float = 0.0
    restarts: int = 0
    adapters: int = 0
