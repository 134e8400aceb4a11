"""``/v1/chat/completions``: messages in, a message out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.server import answers
from selfplay_ray.inference.server.answering import Said, Wording, answer, outcome
from selfplay_ray.inference.server.context import Context, ServerContext
from selfplay_ray.inference.server.errors import ErrorBody, bad_request
from selfplay_ray.inference.server.generation import plan
from selfplay_ray.inference.server.logprobs import TokenText, chat_logprobs, token_text
from selfplay_ray.inference.server.reply import Piece, Reply
from selfplay_ray.inference.server.schemas import ChatCompletionRequest, ChatMessage
from selfplay_ray.types import Message

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=answers.ChatCompletion, responses={400: {"model": ErrorBody}}
)
async def create_chat_completion(body: ChatCompletionRequest, request: Request, context: Context) -> Response:
    """The next message of a chat, whole or as server-sent events."""
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    job = plan(
        context,
        context.models.find(body.model),
        body,
        [await encode_chat(context, body.messages)],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=body.top_logprobs or 0,
        priority=body.priority,
        prefix="chatcmpl",
    )
    text = token_text(context.tokenizing.chat, as_ids=bool(body.return_tokens_as_token_ids))
    wording = _ChatWording(job, bool(body.logprobs or body.return_token_ids), body, text)
    return await answer(request, context, wording, streamed=body.stream, options=body.stream_options)


async def encode_chat(context: ServerContext, messages: list[ChatMessage]) -> tuple[int, ...]:
    """The prompt's tokens. Raises APIError 400 if the chat template refuses the messages."""
    chat = [Message(role=m.role, content=m.text) for m in messages]
    try:
        return await context.tokenizing.run(
            lambda tokenizer: tokenizer.encode(chat)[0], sum(len(m["content"]) for m in chat)
        )
    except InferenceError as error:
        raise bad_request(str(error), "messages") from None


@dataclass(slots=True)
class _ChatWording(Wording):
    body: ChatCompletionRequest
    text: TokenText

    def whole(self, said: Sequence[Reply], usage: answers.Usage) -> answers.ChatCompletion:
        choices = [
            answers.ChatChoice(
                message=answers.AssistantMessage(content=reply.text),
                logprobs=self._logprobs(reply),
                **outcome(index, reply, token_ids=bool(self.body.return_token_ids)),
            )
            for index, reply in enumerate(said)
        ]
        prompt = list(self.job.prompts[0]) if self.body.return_token_ids else None
        return answers.ChatCompletion(choices=choices, usage=usage, prompt_token_ids=prompt, **self.head)

    def opening(self) -> Iterable[answers.ChatCompletionChunk]:
        """Who speaks, in every choice; the first also tells the prompt's tokens."""
        for index in range(len(self.job.requests)):
            role = answers.Delta(role="assistant", content="")
            choice = answers.ChatChunkChoice(index=index, delta=role, finish_reason=None)
            prompt = list(self.job.prompts[0]) if self.body.return_token_ids and index == 0 else None
            yield answers.ChatCompletionChunk(choices=[choice], prompt_token_ids=prompt, **self.head)

    def event(self, index: int, piece: Piece) -> answers.ChatCompletionChunk:
        choice = answers.ChatChunkChoice(
            delta=answers.Delta(content=piece.text),
            logprobs=self._logprobs(piece),
            **outcome(index, piece, token_ids=bool(self.body.return_token_ids)),
        )
        return answers.ChatCompletionChunk(choices=[choice], **self.head)

    def closing(self, usage: answers.Usage) -> answers.ChatCompletionChunk:
        return answers.ChatCompletionChunk(choices=[], usage=usage, **self.head)

    def _logprobs(self, said: Said) -> answers.ChatLogprobs | None:
        return chat_logprobs(said, self.text) if self.body.logprobs else None
