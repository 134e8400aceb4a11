"""Several HTTP endpoints that serve the same: who gets the next request, who is left alone, what is tried again."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import openai

from selfplay_ray.errors import ConfigError, ContextLengthError, InferenceError
from selfplay_ray.inference.balance import IMBALANCE, RetrySettings

T = TypeVar("T")

CONNECT_SECONDS = 10.0
RETRYABLE = (408, 429)  # and all of 5xx
KEYLESS = "none"  # openai's client wants a key even where there is none
TOO_LONG = ("context_length_exceeded", "maximum context length", "max_model_len")
"""How it is told that a request is too long: OpenAI's code, and vLLM's sentences, which have no code of their own."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server: its address up to ``/v1``, how many requests it is answering, and until when to leave it alone."""

    url: str
    api_key: str
    in_flight: int = 0
    failures: int = 0
    resting_until: float = 0.0
    _clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    @property
    def client(self) -> openai.AsyncOpenAI:
        """This event loop's client, with its pool of connections: a connection belongs to a loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            # Retries are ours, because they may go to another endpoint.
            self._clients[loop] = openai.AsyncOpenAI(base_url=self.url, api_key=self.api_key, max_retries=0)
        return self._clients[loop]

    @property
    def resting(self) -> bool:
        return time.monotonic() < self.resting_until

    def rest(self, seconds: float) -> None:
        self.resting_until = max(self.resting_until, time.monotonic() + seconds)

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


Failure = openai.APIStatusError | openai.APIConnectionError
Ask = Callable[[Endpoint, openai.Timeout], Awaitable[T]]


class Endpoints:
    """Spreads requests over ``urls``: to the one that knows the prompt, unless it is far busier, and none that is sick.

    An endpoint that fails is left alone for a while, the longer the more often it fails in a row; when all are,
    the one whose time is up first is asked again.

    Raises:
        ConfigError: there are no urls, or one isn't an address.
    """

    def __init__(self, urls: Sequence[str], api_key: str = "", retry: RetrySettings | None = None) -> None:
        if not urls:
            raise ConfigError("an OpenAI client needs the address of at least one endpoint")
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"{url!r} is no endpoint: give an address like http://127.0.0.1:8000/v1")
        self.endpoints = [Endpoint(url.rstrip("/"), api_key or KEYLESS) for url in urls]
        self.retry = retry or RetrySettings()

    async def ask(self, ask: Ask[T], affinity: object = None) -> T:
        """The result of ``ask`` at one endpoint, and after failures that may pass at another, or later.

        Requests of equal ``affinity`` prefer the same endpoint.

        Raises:
            ContextLengthError: prompt and reply are longer than the endpoint's context.
            InferenceError: it failed for good, or too often, or took too long.
        """
        try:
            async with asyncio.timeout(self.retry.deadline):
                return await self._until_answered(ask, affinity)
        except TimeoutError:
            raise InferenceError(
                f"no answer within {self.retry.deadline:g} s from {self._names()}; "
                f"raise the deadline, or ask for fewer tokens at once"
            ) from None

    def choose(self, affinity: object, tried: Sequence[Endpoint] = ()) -> Endpoint:
        """Who should get a request now; of those it was ``tried`` at in vain, none while there are others."""
        well = [endpoint for endpoint in self.endpoints if not endpoint.resting]
        if not well:
            return min(self.endpoints, key=lambda endpoint: endpoint.resting_until)
        healthy = [endpoint for endpoint in well if endpoint not in tried] or well
        idlest = min(healthy, key=lambda endpoint: endpoint.in_flight)
        if affinity is None:
            return idlest
        preferred = healthy[hash(affinity) % len(healthy)]
        return preferred if preferred.in_flight <= idlest.in_flight + IMBALANCE else idlest

    async def aclose(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.aclose()

    async def _until_answered(self, ask: Ask[T], affinity: object) -> T:
        tried: list[Endpoint] = []
        while True:
            endpoint = self.choose(affinity, tried)
            tried.append(endpoint)
            try:
                return await self._ask(endpoint, ask)
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                if not is_retryable(error):
                    raise kind_of(error)(sentence_of(endpoint, error)) from error
                if len(tried) == self.retry.attempts:
                    sentence = f"{sentence_of(endpoint, error)} (the last of {len(tried)} attempts)"
                    raise InferenceError(sentence) from error
                self._leave_alone(endpoint, len(tried), error)
            await asyncio.sleep(self._until_somebody_is_well())

    def _until_somebody_is_well(self) -> float:
        """Seconds."""
        soonest = min(endpoint.resting_until for endpoint in self.endpoints)
        return max(0.0, soonest - time.monotonic())

    async def _ask(self, endpoint: Endpoint, ask: Ask[T]) -> T:
        endpoint.in_flight += 1
        try:
            answer = await ask(endpoint, openai.Timeout(self.retry.deadline, connect=CONNECT_SECONDS))
        finally:
            endpoint.in_flight -= 1
        endpoint.failures, endpoint.resting_until = 0, 0.0
        return answer

    def _leave_alone(self, endpoint: Endpoint, attempt: int, error: Failure) -> None:
        """For as long as it asks for, or the longer the more often it has failed."""
        busy = isinstance(error, openai.APIStatusError) and error.status_code == 429
        endpoint.failures += not busy
        seconds = self.retry.delay(attempt if busy else max(attempt, endpoint.failures))
        endpoint.rest(max(seconds, retry_after(error)))

    def _names(self) -> str:
        return ", ".join(endpoint.url for endpoint in self.endpoints)


def is_retryable(error: Failure) -> bool:
    """Whether the same request may succeed later, or elsewhere: it is seeded, so twice does no harm."""
    if isinstance(error, openai.APIConnectionError):  # a time-out is one
        return True
    return error.status_code in RETRYABLE or error.status_code >= 500


def retry_after(error: Failure) -> float:
    """Seconds for which the server asks to be left alone; 0 if it doesn't, or doesn't say it in seconds."""
    if isinstance(error, openai.APIConnectionError):
        return 0.0
    try:
        return max(0.0, min(float(error.response.headers.get("retry-after", 0)), 3600.0))
    except ValueError:  # a date
        return 0.0


def kind_of(error: Failure) -> type[InferenceError]:
    """What a failure that won't pass is an error of."""
    if not isinstance(error, openai.APIStatusError) or error.status_code != 400:
        return InferenceError
    said = f"{error.code} {_reason(error)}"
    return ContextLengthError if any(words in said for words in TOO_LONG) else InferenceError


def sentence_of(endpoint: Endpoint, error: Failure) -> str:
    """What ``endpoint`` has answered instead, or why it didn't."""
    if isinstance(error, openai.APIStatusError):
        return f"{endpoint.url} answered {error.status_code}: {_reason(error)}"
    return f"{endpoint.url} can't be reached: {error.__cause__ or error}"


def _reason(error: openai.APIStatusError) -> str:
    """The server's own sentence."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.message
