"""From a request to the replies it asks for: which generations, decoded together, cancelled when nobody listens."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from selfplay_ray.errors import ContextLengthError
from selfplay_ray.inference.engine import Engine
from selfplay_ray.inference.requests import (
    SMALLEST_TEMPERATURE,
    Generation,
    GenerationRequest,
    TokenChunk,
)
from selfplay_ray.inference.server.context import ServerContext
from selfplay_ray.inference.server.errors import CLIENT_CLOSED_REQUEST, APIError, bad_request
from selfplay_ray.inference.server.metrics import Measure
from selfplay_ray.inference.server.reply import Piece, Reply, ReplyReader, pieces
from selfplay_ray.inference.server.schemas import MASK64, NEUTRAL, Neutral, Sampling
from selfplay_ray.inference.server.served import ServedModel

T = TypeVar("T")
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one HTTP request asks of the engine: a generation for each choice, choices of a prompt together."""

    id: str
    model: ServedModel
    sampling: Sampling
    stops: tuple[str, ...]
    prompts: tuple[Tokens, ...]
    requests: tuple[GenerationRequest, ...]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    def prompt_of(self, index: int) -> Tokens:
        """The prompt of choice ``index``."""
        return self.requests[index].prompt_token_ids


def plan(
    context: ServerContext,
    model: ServedModel,
    sampling: Sampling,
    prompts: Sequence[Tokens],
    *,
    max_tokens: int | None,
    top_logprobs: int,
    priority: int,
    prefix: str,
) -> Job:
    """What ``sampling`` asks of the engine for each of ``prompts``; ``max_tokens`` None takes what the context holds.

    Raises:
        APIError: 400 for what can't be asked, 429 when the queue is full.
        InferenceError: it doesn't fit the model, or the engine has stopped.
    """
    engine = context.models.engine
    engine.check_alive()
    refuse_what_changes_the_distribution(sampling)
    _check(sampling, max_tokens)
    context.queue.check(len(prompts) * sampling.n)
    name = f"{prefix}-{uuid.uuid4().hex}"
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    requests = tuple(
        GenerationRequest(
            id=f"{name}-{prompt_index}-{choice}",
            prompt_token_ids=prompt,
            max_tokens=max_tokens or _room_after(prompt, engine.context_length),
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            seed=(seed + choice) & MASK64,
            priority=-priority,
            stop_token_ids=tuple(sampling.stop_token_ids or ()),
            ignore_eos=sampling.ignore_eos,
            min_tokens=sampling.min_tokens,
            top_logprobs=top_logprobs,
            adapter=model.adapter,
        )
        for prompt_index, prompt in enumerate(map(_not_empty, prompts))
        for choice in range(sampling.n)
    )
    for request in requests[:: sampling.n]:
        engine.check_fits(request)
    stops = (sampling.stop,) if isinstance(sampling.stop, str) else tuple(sampling.stop or ())
    return Job(name, model, sampling, stops, tuple(prompts), requests)


async def replies(context: ServerContext, job: Job) -> list[Reply]:
    """The whole reply of every choice."""
    return await _all(*(_reply(context, job, request) for request in job.requests))


async def stream(context: ServerContext, job: Job) -> AsyncGenerator[tuple[int, Piece], None]:
    """Pieces of every choice, as they come, each with the choice's index. Closing it ends what isn't finished."""
    queue: asyncio.Queue[tuple[int, Piece] | asyncio.Task[None]] = asyncio.Queue()

    async def follow(index: int, request: GenerationRequest) -> None:
        async with aclosing(_pieces(context, job, request, incremental=True)) as found:
            async for piece in found:
                queue.put_nowait((index, piece))

    tasks = [asyncio.create_task(follow(index, request)) for index, request in enumerate(job.requests)]
    for task in tasks:
        task.add_done_callback(queue.put_nowait)
    try:
        unfinished = len(tasks)
        while unfinished:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()  # raises what has ended it, if anything did
                unfinished -= 1
            else:
                yield item
    finally:
        await _cancel(tasks)


async def unless_hung_up(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away before."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(CLIENT_CLOSED_REQUEST, "the client has hung up")
        return task.result()
    finally:
        await _cancel([task, gone])


def refuse_what_changes_the_distribution(request: Neutral) -> None:
    """Raise APIError for a parameter that isn't neutral."""
    for name in Neutral.model_fields:
        value = getattr(request, name)
        if value is not None and value not in NEUTRAL.get(name, ()):
            raise bad_request(
                f"{name} is not supported: tokens are drawn from the model's whole distribution at the temperature "
                f"asked for, so that their logprobs are exactly those; leave {name} out",
                name,
                "unsupported_parameter",
            )


def _check(sampling: Sampling, max_tokens: int | None) -> None:
    if 0 < (sampling.temperature or 0) < SMALLEST_TEMPERATURE:
        raise bad_request(
            f"temperature must be 0, which is greedy, or {SMALLEST_TEMPERATURE} or more", "temperature"
        )
    if max_tokens is not None and sampling.min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens {sampling.min_tokens} is more than max_tokens {max_tokens}", "min_tokens"
        )
    if not sampling.detokenize and sampling.stop:
        raise bad_request("stop needs text: leave out detokenize, or use stop_token_ids", "detokenize")


def _not_empty(prompt: Tokens) -> Tokens:
    if not prompt:
        raise bad_request("the prompt is empty: it needs one token or more", "prompt")
    return prompt


def _room_after(prompt: Tokens, context_length: int | None) -> int:
    if context_length is None:
        return 256
    if len(prompt) >= context_length:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, and the model's context holds {context_length}"
        )
    return context_length - len(prompt)


async def _reply(context: ServerContext, job: Job, request: GenerationRequest) -> Reply:
    reply = Reply()
    async with aclosing(_pieces(context, job, request, incremental=bool(job.stops))) as found:
        async for piece in found:
            reply.add(piece)
    return reply


async def _pieces(
    context: ServerContext, job: Job, request: GenerationRequest, *, incremental: bool
) -> AsyncGenerator[Piece, None]:
    sampling, chat = job.sampling, context.tokenizing.chat
    reader = ReplyReader(
        lambda tokens: chat.text_of(tokens, skip_special_tokens=sampling.skip_special_tokens),
        job.stops,
        include_stop=sampling.include_stop_str_in_output,
        min_tokens=sampling.min_tokens,
        end_of_turn=chat.eos_token_ids,
    )
    engine = context.models.engine
    with context.queue.place(), context.metrics.generation(job.model) as measure:
        chunks = engine.stream(request) if incremental else _at_once(engine, request, measure)
        async with aclosing(pieces(chunks, reader)) as found:
            async for piece in found:
                measure.add(piece)
                yield piece


async def _at_once(
    engine: Engine, request: GenerationRequest, measure: Measure
) -> AsyncGenerator[TokenChunk, None]:
    """All of a generation in one chunk, which spares a wake-up for every token."""
    generation = await engine.generate(request)
    measure.to_first_token = generation.seconds_to_first_token
    yield _as_chunk(generation)


def _as_chunk(generation: Generation) -> TokenChunk:
    versions = tuple(span.version for span in generation.spans for _ in range(span.start, span.end))
    return TokenChunk(
        generation.token_ids, generation.logprobs, versions, generation.top_logprobs, generation.finish_reason
    )


async def _all(*work: Coroutine[object, object, T]) -> list[T]:
    """All results; the first failure, or being cancelled, cancels the rest."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
