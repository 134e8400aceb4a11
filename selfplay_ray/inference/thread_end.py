"""Waiting until a thread has ended for the system too, and not only for Python."""

from __future__ import annotations

import threading
import time
from pathlib import Path

POLL_SECONDS = 0.001
MOST_SECONDS = 10.0
"""After which a thread of that number is taken for another, which has got the number since."""


def join_wholly(thread: threading.Thread) -> None:
    """Wait for ``thread``, and for what its libraries do at its very end.

    Before Python 3.13 ``join`` returns when the thread's Python code has ended. MLX keeps a random key for each thread
    that ever drew (a model draws its first weights), and gives it up after that, which takes the interpreter's lock.
    Where the interpreter is being taken down by then, it ends the thread instead, in the midst of a C++ destructor,
    and the process aborts: "terminate called without an active exception". Only Linux (glibc) does, and tells which
    threads there are.
    """
    thread.join()
    entry = Path(f"/proc/self/task/{thread.native_id}")
    deadline = time.monotonic() + MOST_SECONDS
    while entry.exists() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
