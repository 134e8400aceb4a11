"""Which of several engines or judges gets the next call."""

from __future__ import annotations

from collections.abc import Sequence

from selfplay_ray.actors.protocols import Handle
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.types import Completion, ModelCall

IMBALANCE = 8
"""How many more calls than the idlest an engine may have before samples of one prompt are spread."""


class EngineRouter:
    """Sends samples of one prompt to one engine, which runs the prompt once, unless that one is far busier."""

    def __init__(self, engines: Sequence[Handle]) -> None:
        self._engines = list(engines)
        self._busy = [0] * len(engines)

    async def generate(self, request: GenerationRequest) -> Generation:
        index = self._choose(request)
        self._busy[index] += 1
        try:
            generation: Generation = await self._engines[index].generate.remote(request)
        finally:
            self._busy[index] -= 1
        return generation

    def _choose(self, request: GenerationRequest) -> int:
        preferred = hash(request.prompt_token_ids) % len(self._engines)
        idlest = min(range(len(self._engines)), key=self._busy.__getitem__)
        return preferred if self._busy[preferred] <= self._busy[idlest] + IMBALANCE else idlest


class JudgeRouter:
    """Sends a call to the judge with the fewest; a model client of judges."""

    def __init__(self, judges: Sequence[Handle]) -> None:
        self._judges = list(judges)
        self._busy = [0] * len(judges)

    async def complete(self, call: ModelCall) -> Completion:
        index = min(range(len(self._judges)), key=self._busy.__getitem__)
        self._busy[index] += 1
        try:
            completion: Completion = await self._judges[index].complete.remote(call)
        finally:
            self._busy[index] -= 1
        return completion

    def get_policy_version(self) -> int:
        """Judges are frozen."""
        return 0
