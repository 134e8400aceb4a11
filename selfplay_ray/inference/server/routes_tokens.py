"""Tokens: text to tokens and back, and tokens in, tokens out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context, ServerContext
from selfplay_ray.inference.server.errors import ErrorBody, bad_request
from selfplay_ray.inference.server.generation import plan, replies, spans, unless_hung_up
from selfplay_ray.inference.server.logprobs import chat_logprobs, token_text
from selfplay_ray.inference.server.reply import Reply
from selfplay_ray.inference.server.routes_chat import encode_chat
from selfplay_ray.inference.server.schemas import DetokenizeRequest, TokenGenerateRequest, TokenizeRequest
from selfplay_ray.inference.server.streaming import json_response

router = APIRouter(responses={400: {"model": ErrorBody}})


@router.post("/inference/v1/generate", response_model=answers.GenerateAnswer)
async def generate(body: TokenGenerateRequest, request: Request, context: Context) -> Response:
    """Tokens in, tokens out: nothing is tokenized on the way."""
    sampling = body.sampling_params
    job = plan(
        context,
        context.models.find(body.model),
        sampling,
        [tuple(body.token_ids)],
        max_tokens=sampling.max_tokens,
        top_logprobs=sampling.logprobs or 0,
        priority=body.priority,
        prefix="generate",
    )
    said = await unless_hung_up(request, replies(context, job))
    choices = [_choice(context, body, index, reply) for index, reply in enumerate(said)]
    return json_response(answers.GenerateAnswer(request_id=body.request_id or job.id, choices=choices))


@router.post("/tokenize", response_model=answers.TokenizeAnswer)
async def tokenize(body: TokenizeRequest, context: Context) -> Response:
    """The tokens of a text, or of a chat with the prompt for its next reply."""
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    if body.messages is not None:
        tokens = encode_chat(context, body.messages)
    else:
        tokens = context.chat.encode_text(body.prompt or "", add_special_tokens=body.add_special_tokens)
    text = token_text(context.chat, as_ids=False)
    return json_response(
        answers.TokenizeAnswer(
            count=len(tokens),
            max_model_len=context.models.context_length,
            tokens=list(tokens),
            token_strs=[text(token) for token in tokens] if body.return_token_strs else None,
        )
    )


@router.post("/detokenize", response_model=answers.DetokenizeAnswer)
async def detokenize(body: DetokenizeRequest, context: Context) -> Response:
    """The text of tokens, special tokens too."""
    text = context.chat.text_of(body.tokens, skip_special_tokens=False)
    return json_response(answers.DetokenizeAnswer(prompt=text))


def _choice(
    context: ServerContext, body: TokenGenerateRequest, index: int, reply: Reply
) -> answers.GenerateChoice:
    wanted = body.sampling_params.logprobs is not None
    return answers.GenerateChoice(
        index=index,
        token_ids=reply.token_ids,
        finish_reason=reply.finish_reason,
        stop_reason=reply.stop_reason,
        logprobs=chat_logprobs(reply, token_text(context.chat, as_ids=True)) if wanted else None,
        policy_versions=spans(reply.versions),
    )
