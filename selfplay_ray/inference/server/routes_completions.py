"""``/v1/completions``: text or tokens in, their continuation out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.answering import Said, Wording, answer, outcome
from selfplay_ray.inference.server.context import Context, ServerContext
from selfplay_ray.inference.server.errors import ErrorBody
from selfplay_ray.inference.server.generation import plan
from selfplay_ray.inference.server.logprobs import CompletionLogprobsWriter, token_text
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import CompletionRequest

router = APIRouter()


@router.post("/v1/completions", response_model=answers.Completion, responses={400: {"model": ErrorBody}})
async def create_completion(body: CompletionRequest, request: Request, context: Context) -> Response:
    """Continuations of one prompt or several: ``n`` choices of the first, then of the second, and so on."""
    job = plan(
        context,
        context.models.find(body.model),
        body,
        await _prompts(context, body),
        max_tokens=body.max_tokens,
        top_logprobs=body.logprobs or 0,
        priority=body.priority,
        prefix="cmpl",
    )
    text = token_text(context.tokenizing.chat, as_ids=bool(body.return_tokens_as_token_ids))
    writers = [CompletionLogprobsWriter(text, top=bool(body.logprobs)) for _ in job.requests]
    every_token = bool(body.return_token_ids) or body.logprobs is not None
    wording = _CompletionWording(job, every_token, body, writers)
    return await answer(request, context, wording, streamed=body.stream, options=body.stream_options)


async def _prompts(context: ServerContext, body: CompletionRequest) -> list[tuple[int, ...]]:
    """Tokens are taken as they are; text is tokenized as a whole, special tokens in it too."""
    prompts = body.prompt
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]  # type: ignore[assignment]
    special = body.add_special_tokens is not False
    return await context.tokenizing.run(
        lambda tokenizer: [
            tokenizer.encode_text(prompt, add_special_tokens=special)
            if isinstance(prompt, str)
            else tuple(prompt)  # type: ignore[arg-type]
            for prompt in prompts
        ],
        sum(len(prompt) for prompt in prompts if isinstance(prompt, str)),
    )


@dataclass(slots=True)
class _CompletionWording(Wording):
    body: CompletionRequest
    writers: list[CompletionLogprobsWriter]
    opened: set[int] = field(default_factory=set)
    """Choices whose prompt was told."""

    def whole(self, said: Sequence[Reply], usage: answers.Usage) -> answers.Completion:
        choices = [self._choice(index, reply) for index, reply in enumerate(said)]
        return answers.Completion(choices=choices, usage=usage, **self.head)

    def event(self, index: int, piece: Piece) -> answers.Completion:
        return answers.Completion(choices=[self._choice(index, piece)], **self.head)

    def closing(self, usage: answers.Usage) -> answers.Completion:
        return answers.Completion(choices=[], usage=usage, **self.head)

    def _choice(self, index: int, said: Said) -> answers.CompletionChoice:
        logprobs = self.writers[index].write(said) if self.body.logprobs is not None else None
        prompt = None
        if self.body.return_token_ids and index not in self.opened:
            self.opened.add(index)
            prompt = list(self.job.prompt_of(index))
        return answers.CompletionChoice(
            text=said.text,
            logprobs=logprobs,
            prompt_token_ids=prompt,
            **outcome(index, said, token_ids=bool(self.body.return_token_ids)),
        )
