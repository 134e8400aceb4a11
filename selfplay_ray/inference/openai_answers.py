"""What an endpoint answers, and what it must hold before anything is trained on it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from operator import itemgetter

from pydantic import BaseModel, ConfigDict, ValidationError

from selfplay_ray.errors import InferenceError
from selfplay_ray.inference.adapter_names import version_in
from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.requests import Generation, GenerationRequest, TopTokens
from selfplay_ray.types import Completion, FinishReason, PolicySpan

Tokens = tuple[int, ...]

CLAMPED = -9998.0  # about what vLLM writes for minus infinity: such a token can't have been drawn
ROUNDING = 1e-4  # by which a logprob may be above 0
NAMED_BY_ID = re.compile(r"token_id:(\d+)")


class Wire(BaseModel):
    """What is needed of an answer; the rest is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Span(Wire):
    start: int
    end: int
    version: int


class TokenLogprob(Wire):
    logprob: float


class Logprobs(Wire):
    """A completion's (``token_logprobs``), or a chat's (``content``)."""

    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float]] | None = None
    content: list[TokenLogprob] | None = None

    @property
    def values(self) -> Sequence[float | None]:
        if self.content is not None:
            return [token.logprob for token in self.content]
        return self.token_logprobs or []


class ReplyMessage(Wire):
    content: str | None = None


class Choice(Wire):
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    text: str | None = None
    message: ReplyMessage | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    policy_versions: list[Span] | None = None


class Answer(Wire):
    choices: list[Choice]
    prompt_token_ids: list[int] | None = None


def parse(body: bytes, url: str) -> Answer:
    """Raises InferenceError if ``body`` isn't a completion's or a chat's answer."""
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the answer"
        raise InferenceError(f"{url} answered what is no completion: {place}: {problem['msg']}") from None


def checked_completion(
    answer: Answer, url: str, model: str, chat: ChatTokenizer | None, prompt: Tokens, extended: bool
) -> Completion:
    """The first choice of ``answer`` to ``prompt`` (empty where the endpoint made it).

    Raises:
        InferenceError: token ids or logprobs are missing, or can't be true.
    """
    if not answer.choices:
        raise InferenceError(f"{url} answered without a choice")
    choice = answer.choices[0]
    tokens = _tokens(choice, url)
    asked = _prompt(answer, choice, prompt, url)
    reason = _finish_reason(choice, tokens, chat.eos_token_ids if chat else None, url)
    text = chat.decode(tokens) if chat else _text(choice)
    logprobs, spans = _logprobs(choice, len(tokens), url), _spans(choice, len(tokens), model)
    return Completion(text, asked, tokens, logprobs, spans, reason, extended)


def checked_generation(
    answer: Answer, url: str, model: str, request: GenerationRequest, eos_token_ids: Collection[int]
) -> Generation:
    """The only choice of ``answer`` to ``request`` by a model with these ends of a turn.

    Raises:
        InferenceError: token ids or logprobs are missing, or can't be true.
    """
    if len(answer.choices) != 1:
        raise InferenceError(f"{url} answered with {len(answer.choices)} choices where one was asked for")
    choice = answer.choices[0]
    tokens = _tokens(choice, url)
    if len(tokens) > request.max_tokens:
        raise InferenceError(f"{url} returned {len(tokens)} tokens of the {request.max_tokens} asked for")
    _prompt(answer, choice, request.prompt_token_ids, url)
    ends = {*request.stop_token_ids, *(() if request.ignore_eos else eos_token_ids)}
    return Generation(
        token_ids=tokens,
        logprobs=_logprobs(choice, len(tokens), url),
        spans=_spans(choice, len(tokens), model),
        finish_reason=_finish_reason(choice, tokens, ends, url),
        top_logprobs=_top_logprobs(choice, request.top_logprobs, url),
    )


def _tokens(choice: Choice, url: str) -> Tokens:
    if not choice.token_ids:
        raise InferenceError(
            f"{url} returned no token ids, and text can't be trained on: "
            f"it must support return_token_ids, as vLLM does since 0.10.2"
        )
    return tuple(choice.token_ids)


def _prompt(answer: Answer, choice: Choice, sent: Tokens, url: str) -> Tokens:
    told = choice.prompt_token_ids or answer.prompt_token_ids
    if sent and told is not None and tuple(told) != sent:
        raise InferenceError(
            f"{url} answered another prompt than was sent: {len(told)} tokens instead of {len(sent)}"
        )
    if not sent and not told:
        raise InferenceError(f"{url} returned no prompt_token_ids: it must support return_token_ids")
    return sent or tuple(told or ())


def _logprobs(choice: Choice, tokens: int, url: str) -> tuple[float, ...]:
    values = choice.logprobs.values if choice.logprobs else ()
    if len(values) != tokens:
        raise InferenceError(
            f"{url} returned {len(values)} logprobs for {tokens} tokens; training needs one for each, "
            f"so the endpoint must not limit them (vLLM: --max-logprobs)"
        )
    for position, value in enumerate(values):
        if value is None or not math.isfinite(value) or not CLAMPED < value <= ROUNDING:
            raise InferenceError(f"{url} returned {value} as the logprob of token {position}, which is none")
    return tuple(value for value in values if value is not None)


def _finish_reason(choice: Choice, tokens: Tokens, ends: Collection[int] | None, url: str) -> FinishReason:
    match choice.finish_reason:
        case "length":
            return "length"
        case "stop":
            if ends is not None and tokens[-1] not in ends:
                raise InferenceError(
                    f"{url} says that the reply ended, but its last token {tokens[-1]} is not the end of a turn: "
                    f"endpoint and tokenizer are of different models, or the stop token was left out"
                )
            return "stop"
    raise InferenceError(f"{url} gave up on a reply: finish_reason {choice.finish_reason!r}")


def _spans(choice: Choice, tokens: int, model: str) -> tuple[PolicySpan, ...]:
    """As told, else all of them by the version in the model's name."""
    if choice.policy_versions is not None:
        return tuple(PolicySpan(span.start, span.end, span.version) for span in choice.policy_versions)
    return (PolicySpan(0, tokens, version_in(model) or 0),)


def _top_logprobs(choice: Choice, count: int, url: str) -> tuple[TopTokens, ...]:
    """The ``count`` likeliest tokens at each position, from an endpoint that was asked to name tokens by their ids."""
    if not count or choice.logprobs is None or choice.logprobs.top_logprobs is None:
        return ()
    rows = [
        sorted(
            ((_token_id(name, url), value) for name, value in row.items()), key=itemgetter(1), reverse=True
        )
        for row in choice.logprobs.top_logprobs
    ]
    return tuple(tuple(row[:count]) for row in rows)


def _token_id(name: str, url: str) -> int:
    match = NAMED_BY_ID.fullmatch(name)
    if match is None:
        raise InferenceError(f"{url} named a token {name!r}: it must support return_tokens_as_token_ids")
    return int(match[1])


def _text(choice: Choice) -> str:
    said = choice.message.content if choice.message else choice.text
    return said or ""
