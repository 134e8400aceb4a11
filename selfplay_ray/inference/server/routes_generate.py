"""``/inference/v1/generate``: tokens in, tokens out; nothing is tokenized on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.answering import Said, Wording, answer, outcome
from selfplay_ray.inference.server.context import Context
from selfplay_ray.inference.server.errors import ErrorBody
from selfplay_ray.inference.server.generation import plan
from selfplay_ray.inference.server.logprobs import TokenText, chat_logprobs, token_text
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import TokenGenerateRequest

router = APIRouter()


@router.post(
    "/inference/v1/generate",
    response_model=answers.GenerateAnswer,
    responses={400: {"model": ErrorBody}},
)
async def generate(body: TokenGenerateRequest, request: Request, context: Context) -> Response:
    """Continuations of tokens, whole or as server-sent events."""
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
    wording = _GenerateWording(job, True, body, token_text(context.tokenizing.chat, as_ids=True))
    return await answer(request, context, wording, streamed=body.stream, options=body.stream_options)


@dataclass(slots=True)
class _GenerateWording(Wording):
    body: TokenGenerateRequest
    text: TokenText

    def whole(self, said: Sequence[Reply], usage: answers.Usage) -> answers.GenerateAnswer:
        choices = [self._choice(index, reply) for index, reply in enumerate(said)]
        return answers.GenerateAnswer(request_id=self._id, choices=choices, usage=usage)

    def event(self, index: int, piece: Piece) -> answers.GenerateChunk:
        return answers.GenerateChunk(request_id=self._id, choices=[self._choice(index, piece)])

    def closing(self, usage: answers.Usage) -> answers.GenerateChunk:
        return answers.GenerateChunk(request_id=self._id, choices=[], usage=usage)

    @property
    def _id(self) -> str:
        return self.body.request_id or self.job.id

    def _choice(self, index: int, said: Said) -> answers.GenerateChoice:
        wanted = self.body.sampling_params.logprobs is not None
        return answers.GenerateChoice(
            logprobs=chat_logprobs(said, self.text) if wanted else None,
            **outcome(index, said, token_ids=True),
        )
