"""Logprobs of a reply's tokens in the two shapes that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.requests import TopTokens
from selfplay_ray.inference.server.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from selfplay_ray.inference.server.reply import Piece, Reply

TokenText = Callable[[int], str]


def token_text(chat: ChatTokenizer, *, as_ids: bool) -> TokenText:
    """How a token is written in logprobs: its text, special tokens too, or ``token_id:17``."""
    if as_ids:
        return lambda token: f"token_id:{token}"
    return lambda token: chat.text_of([token], skip_special_tokens=False)


def chat_logprobs(said: Piece | Reply, text: TokenText) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_top(token, logprob, text).model_dump(),
                top_logprobs=[_top(other, value, text) for other, value in top],
            )
            for token, logprob, top in _tokens(said)
        ]
    )


@dataclass(slots=True)
class CompletionLogprobsWriter:
    """Logprobs of the pieces of one choice; remembers where in the text the next token begins.

    The offsets count the tokens' own texts, as vLLM's do, so a character of several tokens counts once for each.
    """

    text: TokenText
    top: bool
    offset: int = field(default=0)

    def write(self, said: Piece | Reply) -> CompletionLogprobs:
        texts = [self.text(token) for token in said.token_ids]
        offsets = []
        for text in texts:
            offsets.append(self.offset)
            self.offset += len(text)
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=list(said.logprobs),
            top_logprobs=[self._by_text(*token) for token in _tokens(said)] if self.top else None,
            text_offset=offsets,
        )

    def _by_text(self, token: int, logprob: float, top: TopTokens) -> dict[str, float]:
        """The likeliest tokens, and the sampled one, which may not be among them."""
        return {self.text(other): value for other, value in ((token, logprob), *top)}


def _tokens(said: Piece | Reply) -> Iterator[tuple[int, float, TopTokens]]:
    return zip(said.token_ids, said.logprobs, said.top, strict=True)


def _top(token: int, logprob: float, text: TokenText) -> TopLogprob:
    written = text(token)
    return TopLogprob(token=written, logprob=logprob, bytes=list(written.encode()))
