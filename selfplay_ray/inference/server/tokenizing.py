"""Between text and tokens: at once where it is short, in a thread where it would hold up everybody's replies."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from selfplay_ray.inference.chat import ChatTokenizer

T = TypeVar("T")

LONG = 16_384
"""Characters or tokens that take some milliseconds."""


class Tokenizing:
    """A tokenizer for the event loop, and another for the thread: one has settings that calls change as they run."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self.chat = chat
        self._thread = ThreadPoolExecutor(1, "long-texts")
        self._thread_chat: ChatTokenizer | None = None

    async def run(self, work: Callable[[ChatTokenizer], T], size: int) -> T:
        """The result of ``work`` on ``size`` characters or tokens."""
        if size < LONG:
            return work(self.chat)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_thread, work)

    def _in_thread(self, work: Callable[[ChatTokenizer], T]) -> T:
        if self._thread_chat is None:
            self._thread_chat = copy.deepcopy(self.chat)
        return work(self._thread_chat)
