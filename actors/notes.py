"""What is logged in a process that nobody sees, kept until somebody asks."""

from __future__ import annotations

import logging
from collections import deque

KEPT = 20


class Notes(logging.Handler):
    """Keeps the last warnings that ``selfplay_ray`` logs in this process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[str] = deque(maxlen=KEPT)
        logging.getLogger("selfplay_ray").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record.getMessage())

    def take(self) -> list[str]:
        """Those since they were taken last."""
        taken = list(self._kept)
        self._kept.clear()
        return taken
