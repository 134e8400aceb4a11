"""From tokens as they are sampled to the text of a reply: characters that span tokens, and texts that end it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from selfplay_ray.inference.requests import TokenChunk, TopTokens
from selfplay_ray.types import FinishReason

INCOMPLETE = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Piece:
    """What was added to a reply. ``stop_reason`` is the text or token that ended it, None for the end of the turn."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    top: tuple[TopTokens, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Reply:
    """Pieces of one reply, put together."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.versions += piece.versions
        self.top += piece.top
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


class Detokenizer:
    """The text of tokens that come one after another.

    Only a few tokens before the new ones are decoded with them, enough for a decoder that treats the first
    token otherwise; characters whose bytes are not all there yet are held back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0  # the first token that is decoded again
        self._told = 0  # tokens whose text was given

    def add(self, token_ids: Sequence[int], *, last: bool = False) -> str:
        """The text that ``token_ids`` add; after the ``last``, also of what was held back."""
        self._tokens += token_ids
        told = self._decode(self._tokens[self._context : self._told])
        text = self._decode(self._tokens[self._context :])
        if not last and (text.endswith(INCOMPLETE) or len(text) <= len(told)):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return text[len(told) :]


@dataclass(slots=True)
class StopTexts:
    """Looks for texts that end a reply, holding back what may be the beginning of one."""

    texts: tuple[str, ...]
    include: bool
    held: str = ""

    def add(self, text: str) -> tuple[str, str | None]:
        """What may be shown of the reply now, and the text that has ended it."""
        self.held += text
        found = [(self.held.find(stop), stop) for stop in self.texts if stop in self.held]
        if found:
            start, stop = min(found)
            shown, self.held = self.held[: start + len(stop) * self.include], ""
            return shown, stop
        keep = max((_overlap(self.held, stop) for stop in self.texts), default=0)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown, None

    def rest(self) -> str:
        """What was held back, when the reply ends otherwise."""
        held, self.held = self.held, ""
        return held


class ReplyReader:
    """Makes the pieces of one reply out of the chunks that an engine samples.

    ``end_of_turn`` are the tokens that end a reply without a reason worth naming. A stop text counts only after
    ``min_tokens``, and its tokens belong to the reply's tokens: they were sampled.
    """

    def __init__(
        self,
        decode: Decode,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        end_of_turn: Collection[int] = (),
    ) -> None:
        self._text = Detokenizer(decode)
        self._stops = StopTexts(tuple(stops), include_stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._end_of_turn = end_of_turn
        self._count = 0

    def read(self, chunk: TokenChunk) -> Piece:
        """The piece that ``chunk`` adds; the last one has a ``finish_reason``."""
        if not self._stops.texts:
            return self._piece(chunk, self._decoded(chunk.token_ids, chunk.finish_reason), None)
        text = ""
        for position, token in enumerate(chunk.token_ids):
            last = position == len(chunk.token_ids) - 1
            shown, stop = self._look(token, chunk.finish_reason if last else None)
            text += shown
            if stop is not None:
                return self._piece(_first(chunk, position + 1), text, stop)
        return self._piece(chunk, text + (self._stops.rest() if chunk.finish_reason else ""), None)

    def _look(self, token: int, finish_reason: FinishReason | None) -> tuple[str, str | None]:
        self._count += 1
        new = self._decoded((token,), finish_reason)
        return (new, None) if self._count < self._min_tokens else self._stops.add(new)

    def _decoded(self, token_ids: Sequence[int], finish_reason: FinishReason | None) -> str:
        if finish_reason == "stop" and not self._include_stop:
            token_ids = token_ids[:-1]
        return self._text.add(token_ids, last=finish_reason is not None)

    def _piece(self, chunk: TokenChunk, text: str, stop: str | None) -> Piece:
        finish, reason = chunk.finish_reason, cast("str | int | None", stop)
        if stop is not None:
            finish = "stop"
        elif finish == "stop" and chunk.token_ids[-1] not in self._end_of_turn:
            reason = chunk.token_ids[-1]
        return Piece(
            text, chunk.token_ids, chunk.logprobs, chunk.versions, chunk.top_logprobs, finish, reason
        )


async def pieces(
    chunks: AsyncGenerator[TokenChunk, None], reader: ReplyReader
) -> AsyncGenerator[Piece, None]:
    """The pieces of one reply; ends the generation when they end, or when whoever reads them leaves off."""
    async with aclosing(chunks):
        async for chunk in chunks:
            piece = reader.read(chunk)
            yield piece
            if piece.finish_reason is not None:
                return


def _first(chunk: TokenChunk, count: int) -> TokenChunk:
    return TokenChunk(
        chunk.token_ids[:count],
        chunk.logprobs[:count],
        chunk.versions[:count],
        chunk.top_logprobs[:count],
        chunk.finish_reason,
    )


def _overlap(text: str, stop: str) -> int:
    """How long an end of ``text`` is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
