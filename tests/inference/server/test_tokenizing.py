"""What is long is tokenized in a thread of its own, so that the event loop goes on."""

from __future__ import annotations

import threading

import pytest

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.server.tokenizing import LONG, Tokenizing


@pytest.mark.parametrize(("size", "elsewhere"), [(LONG - 1, False), (LONG, True)])
async def test_only_what_is_long_goes_to_the_thread(chat: ChatTokenizer, size: int, elsewhere: bool):
    tokenizing = Tokenizing(chat)
    thread, used = await tokenizing.run(lambda chat: (threading.current_thread(), chat), size)
    assert (thread is not threading.current_thread()) is elsewhere
    # Two threads would change one tokenizer's settings under each other's hands.
    assert (used is not chat) is elsewhere
    assert used.encode_text("a <|im_end|>") == chat.encode_text("a <|im_end|>")
