"""What is answered, as JSON: OpenAI's responses with vLLM's additions, and the policy versions of every choice."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class VersionSpan(BaseModel):
    """Tokens ``start`` to ``end`` (exclusive) of a choice were sampled by policy ``version``."""

    start: int
    end: int
    version: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """One entry a token; ``text_offset`` is where it begins in the choice's text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(BaseModel):
    """``stop_reason`` is the stop text or token id that ended it, null for the end of the turn."""

    index: int
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    policy_versions: list[VersionSpan] | None = None


class Event(BaseModel):
    """Something that can be sent while more is being said; ``usage`` is told if asked for."""

    usage: Usage | None = None


class OpenAIAnswer(Event):
    id: str
    created: int
    model: str


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None


class ChatCompletion(OpenAIAnswer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Choice):
    delta: Delta
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(OpenAIAnswer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None


class CompletionChoice(Choice):
    text: str
    logprobs: CompletionLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class Completion(OpenAIAnswer):
    """Also a chunk of a stream: then each choice holds what is new."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class GenerateChoice(Choice):
    logprobs: ChatLogprobs | None = None


class GenerateChunk(Event):
    request_id: str
    choices: list[GenerateChoice]


class GenerateAnswer(GenerateChunk):
    prompt_logprobs: None = None
    kv_transfer_params: None = None


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(BaseModel):
    prompt: str


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["selfplay-ray"] = "selfplay-ray"
    root: str
    parent: str | None = None
    max_model_len: int | None = None
    policy_version: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class VersionAnswer(BaseModel):
    """``logprobs_mode`` is vLLM's word for logprobs of the distribution that tokens are drawn from."""

    version: str
    logprobs_mode: Literal["processed_logprobs"] = "processed_logprobs"
