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

import numpy as np

from selfplay_ray.errors import AdapterError, InferenceError, SelfPlayError
from selfplay_ray.inference.decoder import BatchSettings, Decoder, Listener
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest, TokenChunk
from selfplay_ray.lora import LoRASettings, attach_lora, read_adapter, write_adapter
from selfplay_ray.models import load_model

__all__ = ["Engine", "EngineStats"]

BURST_SECONDS = 0.002  # after a rest: requests made together arrive this close together, and share a prefill


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    future: Future[Generation]
    listener: Listener | None = None


@dataclass(frozen=True, slots=True)
class _Cancel:
    future: Future[Generation]


@dataclass(frozen=True, slots=True)
class _Swap:
    weights: Mapping[str, np.ndarray]
    version: int
    future: Future[None]


class _Stop:
    pass


class Engine:
    """Decodes many requests at once on one model, from any number of event loops; weights change between steps.

    With ``lora`` the model carries an adapter, at first without effect (version 0), which ``load_adapter`` sets.
    ``prefill_step_size`` bounds the prompt tokens run between two decode steps. With ``fork`` requests that share
    a prompt, or continue an earlier conversation, run only what is new; ``prefix_cache_bytes`` bounds what is kept
    for that.

    Raises:
        ModelError: there is no such model, or it can't be read.
        BLASError: MLX would be unusably slow here.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        lora: LoRASettings | None = None,
        max_batch_size: int = 32,
        prefill_step_size: int = 512,
        fork: bool = True,
        prefix_cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.model_path = model_path
        self._commands: queue.SimpleQueue[_Submit | _Cancel | _Swap | _Stop] = queue.SimpleQueue()
        self._lock = threading.Lock()  # between asking whether the thread has ended and leaving it a command
        self._ended = False
        self._cause: BaseException | None = None
        settings = BatchSettings(max_batch_size, prefill_step_size, prefix_cache_bytes, fork)
        started: Future[_Core] = Future()
        load = partial(_Core, model_path, lora, settings)
        self._thread = threading.Thread(
            target=self._run, args=(started, load), name="inference-engine", daemon=True
        )
        self._thread.start()
        self._core = started.result()
        atexit.register(self.close)  # a daemon thread inside MLX would crash the interpreter's exit

    async def generate(self, request: GenerationRequest) -> Generation:
        """Continue the prompt of ``request``. Cancelling the task that awaits this frees its place in the batch.

        Raises:
            InferenceError: the request doesn't fit the model, or the engine has stopped.
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
        """Like ``generate``, but token by token. Closing it before its end frees its place in the batch.

        Raises:
            InferenceError: the request doesn't fit the model, or the engine has stopped.
        """
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
        """Raise InferenceError if the model can't take ``request``."""
        self._core.check_fits(request)

    def check_alive(self) -> None:
        """Raise InferenceError if the engine has stopped."""
        with self._lock:
            if self._ended:
                raise self._stopped() from self._cause

    async def load_adapter(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Change the policy to ``weights``, called ``version``, between two decode steps; nothing is drained.

        Raises:
            AdapterError: the weights don't fit; then nothing has changed.
            InferenceError: the engine has stopped.
        """
        future: Future[None] = Future()
        self._send(_Swap(weights, version, future))
        await asyncio.wrap_future(future)

    @property
    def adapter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What ``load_adapter`` takes: the shape of every weight by its name; empty for a model without adapter."""
        return self._core.adapter_shapes

    @property
    def context_length(self) -> int | None:
        """Most tokens of a prompt and its reply together, where the model tells."""
        return self._core.context_length

    @property
    def policy_version(self) -> int:
        """The version of the weights that draw the next token."""
        return self._core.decoder.policy_version

    def stats(self) -> EngineStats:
        return self._core.decoder.stats()

    def close(self) -> None:
        """Stop the thread and wait for it; what is unfinished fails with InferenceError. May be called twice."""
        atexit.unregister(self.close)
        self._commands.put(_Stop())
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, command: _Submit | _Swap) -> None:
        with self._lock:
            if self._ended:
                raise self._stopped() from self._cause
            self._commands.put(command)

    def _stopped(self) -> InferenceError:
        reason = "was closed" if self._cause is None else f"stopped: {self._cause!r}"
        error = InferenceError(f"the inference engine of {self.model_path} {reason}; start another")
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
            command = self._next_command(wait=idle)
            if command is None:
                core.decoder.step()
            elif isinstance(command, _Stop):
                return
            else:
                core.obey(command)
                if idle:
                    time.sleep(BURST_SECONDS)

    def _next_command(self, wait: bool) -> _Submit | _Cancel | _Swap | _Stop | None:
        try:
            return self._commands.get(block=wait)
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
            if isinstance(command, _Submit | _Swap) and command.future.set_running_or_notify_cancel():
                command.future.set_exception(self._stopped())
        started.result().decoder.close(self._stopped())


class _Core:
    """What lives in the engine's thread: the model, and the batch that is decoded on it."""

    def __init__(self, model_path: str | Path, lora: LoRASettings | None, settings: BatchSettings) -> None:
        self.model, tokenizer = load_model(model_path)
        if lora is not None:
            attach_lora(self.model, lora, seed=0)
        self.decoder = Decoder(self.model, tokenizer.eos_token_ids, settings)
        arguments = getattr(self.model, "args", None)  # not every model of mlx-lm tells its limits there
        self.context_length: int | None = getattr(arguments, "max_position_embeddings", None)
        self.adapter_shapes = {name: value.shape for name, value in read_adapter(self.model).items()}
        self._vocabulary_size: int | None = getattr(arguments, "vocab_size", None)

    def check_fits(self, request: GenerationRequest) -> None:
        """Raise InferenceError if the model can't take ``request``. May be called in any thread."""
        prompt, limit, size = request.prompt_token_ids, self.context_length, self._vocabulary_size
        if limit is not None and len(prompt) + request.max_tokens > limit:
            raise InferenceError(
                f"request {request.id} needs {len(prompt)} prompt + {request.max_tokens} new tokens; "
                f"the model's context holds {limit}"
            )
        if size is not None and not 0 <= min(prompt) <= max(prompt) < size:
            raise InferenceError(f"request {request.id} has token ids beyond the vocabulary of {size}")

    def obey(self, command: _Submit | _Cancel | _Swap) -> None:
        match command:
            case _Submit(request, future, listener):
                self.decoder.submit(request, future, listener)
            case _Cancel(future):
                self.decoder.cancel(future)
            case _Swap():
                self._swap(command)

    def _swap(self, swap: _Swap) -> None:
        if not swap.future.set_running_or_notify_cancel():
            return
        started = time.perf_counter()
        try:
            write_adapter(self.model, swap.weights)
        except AdapterError as error:
            swap.future.set_exception(error)
            return
        self.decoder.change_policy(swap.version, time.perf_counter() - started)
        swap.future.set_result(None)
