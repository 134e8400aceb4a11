"""What lives in the engine's thread: the model, the batch that is decoded on it, and what they may be told to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from selfplay_ray.errors import ContextLengthError, InferenceError, SelfPlayError
from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoder import Decoder
from selfplay_ray.inference.decoding import Listener
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import load_model


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a request; ``listener`` is told of every token."""

    request: GenerationRequest
    future: Future[Generation]
    listener: Listener | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget the request of ``future``."""

    future: Future[Generation]


@dataclass(frozen=True, slots=True)
class Change:
    """Something to be done to the adapters between two steps."""

    act: Callable[[Decoder], None]
    future: Future[None]


class Stop:
    """End the thread."""


Command = Submit | Cancel | Change | Stop


class EngineCore:
    """What lives in the engine's thread: the model, and the batch that is decoded on it."""

    def __init__(
        self, model_path: str | Path, lora: LoRASettings | None, max_adapters: int, settings: BatchSettings
    ) -> None:
        model, tokenizer = load_model(model_path)
        adapters = Adapters(model, lora, max_adapters)
        self.decoder = Decoder(model, tokenizer.eos_token_ids, settings, adapters)
        arguments = getattr(model, "args", None)  # not every model of mlx-lm tells its limits there
        self.context_length: int | None = getattr(arguments, "max_position_embeddings", None)
        self._vocabulary_size: int | None = getattr(arguments, "vocab_size", None)

    def check_fits(self, request: GenerationRequest) -> None:
        """Raise what is wrong with ``request``. May be called in any thread."""
        prompt, limit, size = request.prompt_token_ids, self.context_length, self._vocabulary_size
        self.decoder.adapters.find(request.adapter)
        needed = f"request {request.id} needs {len(prompt)} prompt + {request.max_tokens} new tokens"
        if limit is not None and len(prompt) + request.max_tokens > limit:
            raise ContextLengthError(f"{needed}; the model's context holds {limit}")
        budget = self.decoder.budget
        if not budget.rows(len(prompt) + request.max_tokens):
            raise ContextLengthError(
                f"{needed}, whose keys and values don't fit into the {budget.capacity} bytes the engine has for them"
            )
        if size is not None and request.top_logprobs > size:
            raise InferenceError(
                f"request {request.id} asks for {request.top_logprobs} likeliest tokens of {size}"
            )
        if size is not None and not 0 <= min(prompt) <= max(prompt) < size:
            raise InferenceError(f"request {request.id} has token ids beyond the vocabulary of {size}")

    def obey(self, command: Submit | Cancel | Change) -> None:
        match command:
            case Submit(request, future, listener):
                with _told(future):
                    self.decoder.submit(request, future, listener)
            case Cancel(future):
                self.decoder.cancel(future)
            case Change(act, future) if future.set_running_or_notify_cancel():
                with _told(future):
                    act(self.decoder)
                    future.set_result(None)

    def rest(self) -> None:
        """Nothing was to do for a while."""
        self.decoder.expire()
        mx.clear_cache()


@contextmanager
def _told(future: Future[Any]) -> Iterator[None]:
    """Tell ``future`` of an error. One of ours ends there; any other ends the engine too, which may be left half
    changed."""
    try:
        yield
    except BaseException as error:
        if not future.done():
            future.set_exception(error)
        if not isinstance(error, SelfPlayError):
            raise
