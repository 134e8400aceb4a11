"""What every route works with: the models, their tokenizer, the queue in front of them, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from selfplay_ray.inference.server.errors import bad_request, queue_full
from selfplay_ray.inference.server.metrics import ServerMetrics
from selfplay_ray.inference.server.served import ServedModels
from selfplay_ray.inference.server.tokenizing import Tokenizing


@dataclass(slots=True)
class Queue:
    """Counts the generations that run or wait, and says when there is no room for more."""

    limit: int
    taken: int = 0

    def check(self, wanted: int) -> None:
        """Raise APIError unless ``wanted`` more fit: 429, or 400 if they never will."""
        if wanted > self.limit:
            raise bad_request(
                f"the request asks for {wanted} generations; this server holds {self.limit} at once"
            )
        if self.taken + wanted > self.limit:
            raise queue_full(
                f"{self.taken} generations run or wait, and this server holds {self.limit}; try again in a moment"
            )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take one place as long as this lasts."""
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


@dataclass(frozen=True, slots=True)
class ServerContext:
    models: ServedModels
    tokenizing: Tokenizing
    queue: Queue
    metrics: ServerMetrics


def _context(request: Request) -> ServerContext:
    return cast(ServerContext, request.app.state.context)


Context = Annotated[ServerContext, Depends(_context)]
