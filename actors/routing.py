"""Which of several engines or judges gets the next call, and which is left alone because it can't answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ray.exceptions import RayActorError

from selfplay_ray.actors.protocols import Handle
from selfplay_ray.errors import InferenceError, QueueFullError, UnavailableError
from selfplay_ray.inference.balance import IMBALANCE, RetrySettings
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.runlog.plain_text import one_line
from selfplay_ray.types import Completion, ModelCall

Answer = TypeVar("Answer")

AWAY = (UnavailableError, QueueFullError, RayActorError)
"""What somebody answers, or Ray for it, who may yet answer: a process that died is replaced."""


@dataclass(slots=True, eq=False)
class _Place:
    """An engine or a judge, how many of our calls it has, and until when it is left alone."""

    handle: Handle
    calls: int = 0
    failures: int = 0
    resting_until: float = 0.0


class _Places:
    """Those who can be asked. Who couldn't answer is left alone for a while, the longer the more often it couldn't."""

    def __init__(self, handles: Sequence[Handle], retry: RetrySettings | None) -> None:
        self.all = [_Place(handle) for handle in handles]
        self._retry = retry or RetrySettings()

    async def ask(
        self, choose: Callable[[], _Place], call: Callable[[Handle], Awaitable[Answer]], what: str
    ) -> Answer:
        """What whoever ``choose`` says answers to ``call``, asked again where one can't: calls are seeded, so that
        asking twice does no harm.

        Raises:
            InferenceError: nobody could within ``retry.deadline`` seconds.
        """
        deadline = time.monotonic() + self._retry.deadline
        while True:
            place = choose()
            place.calls += 1
            try:
                answer = await call(place.handle)
            except AWAY as error:
                self._leave_alone(place)
                if time.monotonic() > deadline:
                    raise InferenceError(
                        f"{what} within {self._retry.deadline:g} s: {one_line(str(error))}"
                    ) from error
            else:
                place.failures, place.resting_until = 0, 0.0
                return answer
            finally:
                place.calls -= 1
            await asyncio.sleep(self._until_somebody_is_well(deadline))

    def well(self, in_turn: Sequence[_Place]) -> Sequence[_Place]:
        """Those of ``in_turn`` who are not left alone; all where there is none."""
        now = time.monotonic()
        return [place for place in in_turn if place.resting_until <= now] or in_turn

    def _leave_alone(self, place: _Place) -> None:
        place.failures += 1
        place.resting_until = time.monotonic() + self._retry.delay(place.failures)

    def _until_somebody_is_well(self, deadline: float) -> float:
        """Seconds, and no more than are left."""
        soonest = min(*(place.resting_until for place in self.all), deadline)
        return max(0.0, soonest - time.monotonic())


class EngineRouter:
    """Sends samples of one prompt to one engine, which runs the prompt once, unless that one is far busier.

    An engine or endpoint that can't answer is left alone for a while, and the request goes elsewhere.
    """

    def __init__(self, engines: Sequence[Handle], retry: RetrySettings | None = None) -> None:
        self._places = _Places(engines, retry)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Raises InferenceError if nobody could answer within ``retry.deadline`` seconds."""
        return await self._places.ask(
            lambda: self._choose(request),
            lambda engine: engine.generate.remote(request),
            f"no engine could answer request {request.id}",
        )

    def _choose(self, request: GenerationRequest) -> _Place:
        places = self._places.all
        first = hash(request.prompt_token_ids) % len(places)
        # Where one is left alone, its prompts go to the next that isn't, and all others' stay where they were.
        well = self._places.well([*places[first:], *places[:first]])
        idlest = min(well, key=lambda place: place.calls)
        return well[0] if well[0].calls <= idlest.calls + IMBALANCE else idlest


class JudgeRouter:
    """Sends a call to the judge with the fewest; a model client of judges."""

    def __init__(self, judges: Sequence[Handle], retry: RetrySettings | None = None) -> None:
        self._places = _Places(judges, retry)

    async def complete(self, call: ModelCall) -> Completion:
        """Raises InferenceError if nobody could answer within ``retry.deadline`` seconds."""
        return await self._places.ask(
            lambda: min(self._places.well(self._places.all), key=lambda place: place.calls),
            lambda judge: judge.complete.remote(call),
            "no judge could answer",
        )

    def get_policy_version(self) -> int:
        """Judges are frozen."""
        return 0
