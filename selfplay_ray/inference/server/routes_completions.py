"""``/v1/completions``: text or tokens in, their continuation out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context, ServerContext
from selfplay_ray.inference.server.errors import ErrorBody
from selfplay_ray.inference.server.generation import Job, plan, replies, spans, stream, unless_hung_up
from selfplay_ray.inference.server.logprobs import CompletionLogprobsWriter, token_text
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import CompletionRequest
from selfplay_ray.inference.server.streaming import event_stream, json_response, usage_of_stream

router = APIRouter()


@router.post("/v1/completions", response_model=answers.Completion, responses={400: {"model": ErrorBody}})
async def create_completion(body: CompletionRequest, request: Request, context: Context) -> Response:
    """Continuations of one prompt or several: ``n`` choices of the first, then of the second, and so on."""
    job = plan(
        context,
        context.models.find(body.model),
        body,
        _prompts(context, body),
        max_tokens=body.max_tokens,
        top_logprobs=body.logprobs or 0,
        priority=body.priority,
        prefix="cmpl",
    )
    if body.stream:
        return event_stream(_events(context, body, job))
    said = await unless_hung_up(request, replies(context, job))
    return json_response(_whole(context, body, job, said))


def _prompts(context: ServerContext, body: CompletionRequest) -> list[tuple[int, ...]]:
    """Tokens are taken as they are; text is tokenized as a whole, special tokens in it too."""
    prompts = body.prompt
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]  # type: ignore[assignment]
    special = body.add_special_tokens is not False
    return [
        context.chat.encode_text(prompt, add_special_tokens=special)
        if isinstance(prompt, str)
        else tuple(prompt)  # type: ignore[arg-type]
        for prompt in prompts
    ]


def _whole(
    context: ServerContext, body: CompletionRequest, job: Job, said: list[Reply]
) -> answers.Completion:
    return answers.Completion(
        id=job.id,
        created=int(time.time()),
        model=job.model.name,
        choices=[
            _choice(body, job, index, reply, reply.versions, _writer(context, body))
            for index, reply in enumerate(said)
        ],
        usage=answers.Usage.of(job.prompt_tokens, sum(len(reply.token_ids) for reply in said)),
    )


async def _events(
    context: ServerContext, body: CompletionRequest, job: Job
) -> AsyncGenerator[answers.Completion, None]:
    created = int(time.time())
    versions: list[list[int]] = [[] for _ in job.requests]
    writers = [_writer(context, body) for _ in job.requests]

    def chunk(*choices: answers.CompletionChoice) -> answers.Completion:
        return answers.Completion(id=job.id, created=created, model=job.model.name, choices=list(choices))

    async for index, piece in stream(context, job):
        first = not versions[index]
        versions[index] += piece.versions
        if piece.text or piece.finish_reason or body.return_token_ids or body.logprobs is not None:
            choice = _choice(body, job, index, piece, versions[index], writers[index])
            if not first:
                choice.prompt_token_ids = None
            yield chunk(choice)
    if usage := usage_of_stream(body.stream_options, job, versions):
        yield chunk().model_copy(update={"usage": usage})


def _choice(
    body: CompletionRequest,
    job: Job,
    index: int,
    said: Piece | Reply,
    versions: list[int],
    writer: CompletionLogprobsWriter,
) -> answers.CompletionChoice:
    return answers.CompletionChoice(
        index=index,
        text=said.text,
        finish_reason=said.finish_reason,
        stop_reason=said.stop_reason,
        logprobs=writer.write(said) if body.logprobs is not None else None,
        token_ids=list(said.token_ids) if body.return_token_ids else None,
        prompt_token_ids=list(job.prompt_of(index)) if body.return_token_ids else None,
        policy_versions=spans(versions) if said.finish_reason else None,
    )


def _writer(context: ServerContext, body: CompletionRequest) -> CompletionLogprobsWriter:
    text = token_text(context.chat, as_ids=bool(body.return_tokens_as_token_ids))
    return CompletionLogprobsWriter(text, top=bool(body.logprobs))
