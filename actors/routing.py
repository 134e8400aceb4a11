"""Which of several engines or judges gets the next call, and which is left alone because it can't answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay_ray.actors.protocols import Handle
from selfplay_ray.errors import InferenceError, QueueFullError, UnavailableError
from selfplay_ray.inference.balance import IMBALANCE, RetrySettings
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.types import Completion, ModelCall


@dataclass(slots=True, eq=False)
class _Place:
    """An engine, how many of our calls it has, and until when it is left alone."""

    engine: Handle
    calls: int = 0
    failures: int = 0
    resting_until: float = 0.0


class EngineRouter:
    """Sends samples of one prompt to one engine, which runs the prompt once, unless that one is far busier.

    An engine or endpoint that can't answer is left alone for a while, the longer the more often it couldn't, and
    the request goes elsewhere: it is seeded, so that asking twice does no harm.
    """

    def __init__(self, engines: Sequence[Handle], retry: RetrySettings | None = None) -> None:
        self._places = [_Place(engine) for engine in engines]
        self._retry = retry or RetrySettings()

    async def generate(self, request: GenerationRequest) -> Generation:
        """Raises InferenceError if nobody could answer within ``retry.deadline`` seconds."""
        deadline = time.monotonic() + self._retry.deadline
        while True:
            place = self._choose(request)
            place.calls += 1
            try:
                generation: Generation = await place.engine.generate.remote(request)
            except (UnavailableError, QueueFullError) as error:
                self._leave_alone(place)
                if time.monotonic() > deadline:
                    raise InferenceError(
                        f"no engine could answer request {request.id} within {self._retry.deadline:g} s: {error}"
                    ) from error
            else:
                place.failures, place.resting_until = 0, 0.0
                return generation
            finally:
                place.calls -= 1
            await asyncio.sleep(self._until_somebody_is_well(deadline))

    def _choose(self, request: GenerationRequest) -> _Place:
        now, count = time.monotonic(), len(self._places)
        first = hash(request.prompt_token_ids) % count
        # Where one is left alone, its prompts go to the next that isn't, and all others' stay where they were.
        in_turn = [self._places[(first + offset) % count] for offset in range(count)]
        well = [place for place in in_turn if place.resting_until <= now] or in_turn
        idlest = min(well, key=lambda place: place.calls)
        return well[0] if well[0].calls <= idlest.calls + IMBALANCE else idlest

    def _leave_alone(self, place: _Place) -> None:
        place.failures += 1
        place.resting_until = time.monotonic() + self._retry.delay(place.failures)

    def _until_somebody_is_well(self, deadline: float) -> float:
        """Seconds, and no more than are left."""
        soonest = min(*(place.resting_until for place in self._places), deadline)
        return max(0.0, soonest - time.monotonic())


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
