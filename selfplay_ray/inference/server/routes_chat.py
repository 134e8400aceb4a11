"""``/v1/chat/completions``: messages in, a message out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context, ServerContext
from selfplay_ray.inference.server.errors import ErrorBody, bad_request
from selfplay_ray.inference.server.generation import Job, plan, replies, spans, stream, unless_hung_up
from selfplay_ray.inference.server.logprobs import chat_logprobs, token_text
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import ChatCompletionRequest, ChatMessage
from selfplay_ray.inference.server.streaming import event_stream, json_response, usage_of_stream
from selfplay_ray.types import Message

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=answers.ChatCompletion, responses={400: {"model": ErrorBody}}
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, context: Context) -> Response:
    """The next message of a chat, whole or as server-sent events."""
    job = _plan(context, body)
    if body.stream:
        return event_stream(_events(context, body, job))
    said = await unless_hung_up(request, replies(context, job))
    return json_response(_whole(context, body, job, said))


def encode_chat(context: ServerContext, messages: list[ChatMessage]) -> tuple[int, ...]:
    """The prompt's tokens. Raises APIError 400 if the chat template refuses the messages."""
    try:
        return context.chat.encode([Message(role=m.role, content=m.text) for m in messages])[0]
    except InferenceError as error:
        raise bad_request(str(error), "messages") from None


def _plan(context: ServerContext, body: ChatCompletionRequest) -> Job:
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    return plan(
        context,
        context.models.find(body.model),
        body,
        [encode_chat(context, body.messages)],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=body.top_logprobs or 0,
        priority=body.priority,
        prefix="chatcmpl",
    )


def _whole(
    context: ServerContext, body: ChatCompletionRequest, job: Job, said: list[Reply]
) -> answers.ChatCompletion:
    return answers.ChatCompletion(
        id=job.id,
        created=int(time.time()),
        model=job.model.name,
        choices=[
            answers.ChatChoice(
                index=index,
                message=answers.AssistantMessage(content=reply.text),
                finish_reason=reply.finish_reason,
                stop_reason=reply.stop_reason,
                logprobs=_logprobs(context, body, reply),
                token_ids=reply.token_ids if body.return_token_ids else None,
                policy_versions=spans(reply.versions),
            )
            for index, reply in enumerate(said)
        ],
        usage=answers.Usage.of(job.prompt_tokens, sum(len(reply.token_ids) for reply in said)),
        prompt_token_ids=list(job.prompts[0]) if body.return_token_ids else None,
    )


async def _events(
    context: ServerContext, body: ChatCompletionRequest, job: Job
) -> AsyncGenerator[answers.ChatCompletionChunk, None]:
    """First who speaks, in every choice, then what is said; policy versions come with the end of each choice."""
    created = int(time.time())
    versions: list[list[int]] = [[] for _ in job.requests]

    def chunk(*choices: answers.ChatChunkChoice) -> answers.ChatCompletionChunk:
        return answers.ChatCompletionChunk(
            id=job.id, created=created, model=job.model.name, choices=list(choices)
        )

    for index in range(len(job.requests)):
        role = answers.Delta(role="assistant", content="")
        first = chunk(answers.ChatChunkChoice(index=index, delta=role, finish_reason=None))
        first.prompt_token_ids = list(job.prompts[0]) if body.return_token_ids and index == 0 else None
        yield first
    async for index, piece in stream(context, job):
        versions[index] += piece.versions
        if _says_something(body, piece):
            yield chunk(_chunk_choice(context, body, index, piece, versions[index]))
    if usage := usage_of_stream(body.stream_options, job, versions):
        yield chunk().model_copy(update={"usage": usage})


def _chunk_choice(
    context: ServerContext, body: ChatCompletionRequest, index: int, piece: Piece, versions: list[int]
) -> answers.ChatChunkChoice:
    return answers.ChatChunkChoice(
        index=index,
        delta=answers.Delta(content=piece.text),
        finish_reason=piece.finish_reason,
        stop_reason=piece.stop_reason,
        logprobs=_logprobs(context, body, piece),
        token_ids=list(piece.token_ids) if body.return_token_ids else None,
        policy_versions=spans(versions) if piece.finish_reason else None,
    )


def _says_something(body: ChatCompletionRequest, piece: Piece) -> bool:
    """Text may be held back, while more of it, or of a character, is awaited."""
    return bool(piece.text or piece.finish_reason or body.logprobs or body.return_token_ids)


def _logprobs(
    context: ServerContext, body: ChatCompletionRequest, said: Piece | Reply
) -> answers.ChatLogprobs | None:
    if not body.logprobs:
        return None
    return chat_logprobs(said, token_text(context.chat, as_ids=bool(body.return_tokens_as_token_ids)))
