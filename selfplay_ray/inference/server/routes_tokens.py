"""Text to tokens and back."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.context import Context
from selfplay_ray.inference.server.errors import ErrorBody, bad_request
from selfplay_ray.inference.server.logprobs import token_text
from selfplay_ray.inference.server.routes_chat import encode_chat
from selfplay_ray.inference.server.schemas import DetokenizeRequest, TokenizeRequest
from selfplay_ray.inference.server.streaming import json_response

router = APIRouter(responses={400: {"model": ErrorBody}})


@router.post("/tokenize", response_model=answers.TokenizeAnswer)
async def tokenize(body: TokenizeRequest, context: Context) -> Response:
    """The tokens of a text, or of a chat with the prompt for its next reply."""
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")
    if body.messages is not None:
        tokens = await encode_chat(context, body.messages)
    else:
        prompt, special = body.prompt or "", body.add_special_tokens
        tokens = await context.tokenizing.run(
            lambda chat: chat.encode_text(prompt, add_special_tokens=special), len(prompt)
        )
    texts = None
    if body.return_token_strs:
        texts = await context.tokenizing.run(
            lambda chat: list(map(token_text(chat, as_ids=False), tokens)), len(tokens)
        )
    return json_response(
        answers.TokenizeAnswer(
            count=len(tokens),
            max_model_len=context.models.engine.context_length,
            tokens=list(tokens),
            token_strs=texts,
        )
    )


@router.post("/detokenize", response_model=answers.DetokenizeAnswer)
async def detokenize(body: DetokenizeRequest, context: Context) -> Response:
    """The text of tokens, special tokens too."""
    text = await context.tokenizing.run(
        lambda chat: chat.text_of(body.tokens, skip_special_tokens=False), len(body.tokens)
    )
    return json_response(answers.DetokenizeAnswer(prompt=text))
