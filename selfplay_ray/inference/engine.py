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
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from selfplay_ray.errors import EngineStoppedError, SelfPlayError
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoder import Decoder
from selfplay_ray.inference.engine_core import Cancel, Change, Command, EngineCore, Stop, Submit
from selfplay_ray.inference.requests import LIVE, EngineStats, Generation, GenerationRequest, TokenChunk
from selfplay_ray.inference.thread_end import join_wholly
from selfplay_ray.lora import LoRASettings

__all__ = ["Engine", "EngineStats"]

BURST_SECONDS = 0.002  # after a rest: requests made together arrive this close together, and share a prefill
REST_SECONDS = 1.0  # of idleness after which memory is given back


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
        prefix_cache_bytes, prefix_seconds: how much of that (None: a quarter) is kept for prompts that begin with
            what was run before, and for how long since it was last of use.
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
        prefix_cache_bytes: int | None = None,
        prefix_seconds: float = 600.0,
        fork: bool = True,
    ) -> None:
        self.model_path = model_path
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
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
        started: Future[EngineCore] = Future()
        load = partial(EngineCore, model_path, lora, max_adapters, settings)
        self._thread = threading.Thread(
            target=self._run, args=(started, load), name="inference-engine", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)  # a daemon thread inside MLX would crash the interpreter's exit
        try:
            self._core = started.result()
        except BaseException:  # no model, or Ctrl-C: the process may be about to end
            self.close()
            raise

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
        self._send(Submit(request, future))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._commands.put(Cancel(future))
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
        self._send(Submit(request, future, arrive))
        try:
            while not isinstance(item := await arrived.get(), Future):
                yield item
            item.result()
        finally:
            if not future.done():
                self._commands.put(Cancel(future))

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

    async def pulse(self) -> None:
        """Return once the thread has come round, which it does between two decode steps.

        Raises:
            EngineStoppedError: the engine has stopped.
        """
        await self._change(lambda decoder: None)

    def close(self) -> None:
        """Stop the thread and wait for it; what is unfinished fails with EngineStoppedError. May be called twice."""
        self._commands.put(Stop())
        join_wholly(self._thread)
        atexit.unregister(self.close)  # at last: Ctrl-C may come before

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _change(self, act: Callable[[Decoder], None]) -> None:
        future: Future[None] = Future()
        self._send(Change(act, future))
        await asyncio.wrap_future(future)

    def _send(self, command: Submit | Change) -> None:
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

    def _run(self, started: Future[EngineCore], load: Callable[[], EngineCore]) -> None:
        # Errors of ours are told to whoever waits; any other also leaves its traceback on stderr, as threads do.
        with contextlib.suppress(SelfPlayError):
            try:
                started.set_result(load())
                self._serve(started.result())
            finally:
                self._end(started, sys.exception())

    def _serve(self, core: EngineCore) -> None:
        while True:
            idle = not core.decoder.busy
            command = self._next_command(
                wait=idle, timeout=REST_SECONDS if core.decoder.holds_prefixes else None
            )
            if isinstance(command, Stop):
                return
            if command is not None:
                core.obey(command)
                if idle:
                    time.sleep(BURST_SECONDS)
            elif idle:
                core.rest()
            else:
                core.decoder.step()

    def _next_command(self, wait: bool, timeout: float | None = None) -> Command | None:
        try:
            return self._commands.get(block=wait, timeout=timeout if wait else None)
        except queue.Empty:
            return None

    def _end(self, started: Future[EngineCore], cause: BaseException | None) -> None:
        """However the thread ends, nobody is left waiting for it."""
        with self._lock:
            self._ended, self._cause = True, cause
        if not started.done():
            started.set_exception(cause)
            return
        while (command := self._next_command(wait=False)) is not None:
            if isinstance(command, Submit | Change) and command.future.set_running_or_notify_cancel():
                command.future.set_exception(self._stopped())
        started.result().decoder.close(self._stopped())
