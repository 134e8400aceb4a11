"""The inference engine: one thread owns model, batch, random keys and weights; asyncio talks to it by a queue.

MLX's streams and lazy arrays belong to a thread, so everything that touches them happens in that one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import mlx.core as mx
import numpy as np

from selfplay_ray.errors import ContextLengthError, EngineStoppedError, InferenceError, SelfPlayError
from selfplay_ray.inference.adapters import Adapters
from selfplay_ray.inference.decoder import BatchSettings, Decoder
from selfplay_ray.inference.decoding import Listener
from selfplay_ray.inference.requests import LIVE, EngineStats, Generation, GenerationRequest, TokenChunk
from selfplay_ray.lora import LoRASettings
from selfplay_ray.models import load_model

__all__ = ["Engine", "EngineStats"]

BURST_SECONDS = 0.002  # after a rest: requests made together arrive this close together, and share a prefill
REST_SECONDS = 1.0  # of idleness after which memory is given back


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    future: Future[Generation]
    listener: Listener | None = None


@dataclass(frozen=True, slots=True)
class _Cancel:
    future: Future[Generation]


@dataclass(frozen=True, slots=True)
class _Change:
    """Something to be done to the adapters between two steps."""

    act: Callable[[Decoder], None]
    future: Future[None]


class _Stop:
    pass


class Engine:
    """Decodes many requests at once on one model, from any number of event loops; weights change between steps.

    With ``lora`` the model carries adapters, up to ``max_adapters`` of them, and computes every request of a batch
    with its own. ``LIVE`` is there from the start, at first without effect (version 0).

    Args:
        max_batch_size: most sequences decoded at once.
        max_waiting: most requests that may wait besides; None: any number.
        prefill_step_size: most prompt tokens run between two decode steps while anybody decodes.
        kv_cache_bytes: what keys and values may take; requests wait until there is room for theirs. None: a quarter
            of the memory.
        prefix_cache_bytes, prefix_seconds: how much of that is kept for prompts that begin with what was run before,
            and for how long since it was last of use.
        fork: whether to run only what is new of prompts that were run before, or are asked for more than once.

    Raises:
        ModelError: there is no such model, or it can't be read.
        BLASError: MLX would be unusably slow here.
        ConfigError: a bound that leaves nothing to do.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        lora: LoRASettings | None = None,
        max_adapters: int = 16,
        max_batch_size: int = 32,
        max_waiting: int | None = None,
        prefill_step_size: int = 512,
        kv_cache_bytes: int | None = None,
        prefix_cache_bytes: int = 256 * 2**20,
        prefix_seconds: float = 600.0,
        fork: bool = True,
    ) -> None:
        self.model_path = model_path
        self._commands: queue.SimpleQueue[_Submit | _Cancel | _Change | _Stop] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between asking whether the thread has ended and leaving it a command
        self._ended = False
        self._cause: BaseException | None = None
        settings = BatchSettings(
            max_batch_size=max_batch_size,
            max_waiting=max_waiting,
            prefill_step_size=prefill_step_size,
            kv_cache_bytes=kv_cache_bytes,
            prefix_cache_bytes=prefix_cache_bytes,
            prefix_seconds=prefix_seconds,
            fork=fork,
        )
        started: Future[_Core] = Future()
        load = partial(_Core, model_path, lora, max_adapters, settings)
        self._thread = threading.Thread(
            target=self._run, args=(started, load), name="inference-engine", daemon=True
        )
        self._thread.start()
        self._core = started.result()
        atexit.register(self.close)  # a daemon thread inside MLX would crash the interpreter's exit

    async def generate(self, request: GenerationRequest) -> Generation:
        """Continue the prompt of ``request``. Cancelling the task that awaits this frees its place in the batch.

        Raises:
            UnknownNameError: its adapter isn't loaded.
            ContextLengthError: it is longer than the model's context, or than the memory for keys and values.
            InferenceError: it doesn't fit the model in another way.
            QueueFullError: as many requests wait as may.
            EngineStoppedError: the engine was closed, or its thread failed.
        """
        self.check_fits(request)
        future: Future[Generation] = Future()
        self._send(_Submit(request, future))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._commands.put(_Cancel(future))
            raise

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Like ``generate``, but token by token. Closing it before its end frees its place in the batch."""
        self.check_fits(request)
        loop, future = asyncio.get_running_loop(), Future[Generation]()
        arrived: asyncio.Queue[TokenChunk | Future[Generation]] = asyncio.Queue()

        def arrive(item: TokenChunk | Future[Generation]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        future.add_done_callback(arrive)
        self._send(_Submit(request, future, arrive))
        try:
            while not isinstance(item := await arrived.get(), Future):
                yield item
            item.result()
        finally:
            if not future.done():
                self._commands.put(_Cancel(future))

    def check_fits(self, request: GenerationRequest) -> None:
        """Raise what ``generate`` would raise about ``request`` itself."""
        self._core.check_fits(request)

    def check_alive(self) -> None:
        """Raise EngineStoppedError if the engine has stopped."""
        with self._lock:
            if self._ended:
                raise self._stopped() from self._cause

    async def load_adapter(
        self, weights: Mapping[str, np.ndarray], version: int, adapter: str = LIVE
    ) -> None:
        """Give ``adapter`` these weights, called ``version``, between two decode steps; nothing is drained.

        Requests being decoded go on with the new weights, and say which token is of which; those whose prompt is
        still being run begin it again.

        Raises:
            AdapterError: the weights don't fit, or there is no room for one more; then nothing has changed.
            EngineStoppedError: the engine has stopped.
        """
        await self._change(lambda decoder: decoder.load_adapter(adapter, weights, version))

    async def unload_adapter(self, adapter: str) -> None:
        """Take no more requests for ``adapter``; those there are go on with it to their end.

        Raises:
            UnknownNameError: it isn't loaded.
            EngineStoppedError: the engine has stopped.
        """
        await self._change(lambda decoder: decoder.unload_adapter(adapter))

    @property
    def adapters(self) -> Mapping[str, int]:
        """The version of every adapter by its name."""
        return self._core.decoder.adapters.versions

    @property
    def adapter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What ``load_adapter`` takes: the shape of every weight by its name; empty for a model without adapter."""
        return self._core.decoder.adapters.shapes

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt and its reply together, where the model tells."""
        return self._core.context_length

    @property
    def policy_version(self) -> int:
        """The version of ``LIVE``, which draws the next token of whoever asks for no other."""
        return self.adapters.get(LIVE, 0)

    def stats(self) -> EngineStats:
        return self._core.decoder.stats()

    def close(self) -> None:
        """Stop the thread and wait for it; what is unfinished fails with EngineStoppedError. May be called twice."""
        atexit.unregister(self.close)
        self._commands.put(_Stop())
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _change(self, act: Callable[[Decoder], None]) -> None:
        future: Future[None] = Future()
        self._send(_Change(act, future))
        await asyncio.wrap_future(future)

    def _send(self, command: _Submit | _Change) -> None:
        with self._lock:
            if self._ended:
                raise self._stopped() from self._cause
            self._commands.put(command)

    def _stopped(self) -> EngineStoppedError:
        reason = "was closed" if self._cause is None else f"stopped: {self._cause!r}"
        error = EngineStoppedError(f"the inference engine of {self.model_path} {reason}; start another")
        error.__cause__ = self._cause
        return error

    # What follows runs in the engine's thread.

    def _run(self, started: Future[_Core], load: Callable[[], _Core]) -> None:
        # Errors of ours are told to whoever waits; any other also leaves its traceback on stderr, as threads do.
        with contextlib.suppress(SelfPlayError):
            try:
                started.set_result(load())
                self._serve(started.result())
            finally:
                self._end(started, sys.exception())

    def _serve(self, core: _Core) -> None:
        while True:
            idle = not core.decoder.busy
            command = self._next_command(
                wait=idle, timeout=REST_SECONDS if core.decoder.holds_prefixes else None
            )
            if isinstance(command, _Stop):
                return
            if command is not None:
                core.obey(command)
                if idle:
                    time.sleep(BURST_SECONDS)
            elif idle:
                core.rest()
            else:
                core.decoder.step()

    def _next_command(
        self, wait: bool, timeout: float | None = None
    ) -> _Submit | _Cancel | _Change | _Stop | None:
        try:
            return self._commands.get(block=wait, timeout=timeout if wait else None)
        except queue.Empty:
            return None

    def _end(self, started: Future[_Core], cause: BaseException | None) -> None:
        """However the thread ends, nobody is left waiting for it."""
        with self._lock:
            self._ended, self._cause = True, cause
        if not started.done():
            started.set_exception(cause)
            return
        while (command := self._next_command(wait=False)) is not None:
            if isinstance(command, _Submit | _Change) and command.future.set_running_or_notify_cancel():
                command.future.set_exception(self._stopped())
        started.result().decoder.close(self._stopped())


class _Core:
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
        if size is not None and not 0 <= min(prompt) <= max(prompt) < size:
            raise InferenceError(f"request {request.id} has token ids beyond the vocabulary of {size}")

    def obey(self, command: _Submit | _Cancel | _Change) -> None:
        match command:
            case _Submit(request, future, listener):
                try:
                    self.decoder.submit(request, future, listener)
                except SelfPlayError as error:
                    _fail(future, error)
            case _Cancel(future):
                self.decoder.cancel(future)
            case _Change(act, future) if future.set_running_or_notify_cancel():
                try:
                    act(self.decoder)
                except SelfPlayError as error:
                    future.set_exception(error)
                else:
                    future.set_result(None)

    def rest(self) -> None:
        """Nothing was to do for a while."""
        self.decoder.expire()
        mx.clear_cache()


def _fail(future: Future[Generation], error: SelfPlayError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
