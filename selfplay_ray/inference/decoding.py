"""One request on its way through the engine: what it asked for, where it is, and its tokens as they come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.requests import Generation, GenerationRequest, TokenChunk, TopTokens
from selfplay_ray.inference.sampling import SamplingRow
from selfplay_ray.types import FinishReason, PolicySpan

Tokens = tuple[int, ...]
Listener = Callable[[TokenChunk], None]

WORTH_KEEPING = 32
"""Replies of fewer tokens are not kept for a next turn: running them again after their prompt, which is kept, takes
about as long as copying their keys and values out of the batch, which every sample of a group would have to pay."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and what is known of it."""

    token: int
    logprob: float
    version: int
    top: TopTokens


@dataclass(slots=True, eq=False)
class Decoding:
    """A request, its place in the queue by ``ticket``, and whom to tell.

    ``prompt_change`` tells which of the adapter's weights its prompt was begun with (``Adapter.changes``); ``restarts``
    how often that was begun again because the adapter has changed since. ``head`` is what is prefilled: all of the
    prompt but its last token, with which decoding begins. ``held`` counts the tokens, of the prompt and then of the
    reply, of which there are keys and values; ``covered`` those of the head that were run for others; ``drawn`` those
    of the reply that were drawn, if not yet read. With ``shares`` it may go on with what was run for others.
    """

    ticket: int
    request: GenerationRequest
    adapter: Adapter
    stop_token_ids: frozenset[int]
    future: Future[Generation]
    listener: Listener | None = None
    prompt_change: int = 0
    restarts: int = 0
    shares: bool = True
    held: int = 0
    covered: int = 0
    drawn: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    top_logprobs: list[TopTokens] = field(default_factory=list)
    submitted: float = field(default_factory=time.perf_counter)
    seconds_to_first_token: float = 0.0
    head: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.head = self.request.prompt_token_ids[:-1]

    def __lt__(self, other: Decoding) -> bool:
        """Higher priority first, then who came first."""
        return (-self.request.priority, self.ticket) < (-other.request.priority, other.ticket)

    @property
    def group(self) -> tuple[Adapter, Tokens]:
        """Requests with the same one are samples of one prompt."""
        return self.adapter, self.head

    @property
    def prefill(self) -> tuple[Adapter, int, Tokens]:
        """Requests with the same one can share a prefill: the policy that runs it, and the tokens."""
        return self.adapter, self.prompt_change, self.head

    @property
    def most_tokens(self) -> int:
        """How many positions its keys and values may come to take."""
        return len(self.request.prompt_token_ids) + self.request.max_tokens

    @property
    def left(self) -> int:
        """Tokens of the head that are still to be run, while it is."""
        return len(self.head) - self.held

    @property
    def prefilled(self) -> bool:
        """Whether there are keys and values of all its head."""
        return self.left <= 0

    @property
    def kind(self) -> Hashable:
        """Those of the same have the same prompt and policy, and draw their first token; None is of a kind of its
        own."""
        if self.drawn or not self.shares:
            return None
        return self.prefill, self.request.prompt_token_ids[-1]

    @property
    def tokens_held(self) -> Tokens:
        """The tokens of which there are keys and values, if all that were drawn are read."""
        return (*self.request.prompt_token_ids, *self.token_ids)[: self.held]

    def next_draw(self) -> SamplingRow:
        """How its next token is drawn."""
        request = self.request
        banned = self.stop_token_ids if self.drawn < request.min_tokens else ()
        return SamplingRow(request.seed, request.temperature, self.drawn, banned, request.top_logprobs)

    def take(self, drawn: Drawn) -> FinishReason | None:
        """The next token; tells whoever listens. Why it is the last one, if it is."""
        if not self.token_ids:
            self.seconds_to_first_token = time.perf_counter() - self.submitted
        self.token_ids.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        self.versions.append(drawn.version)
        self.top_logprobs.append(drawn.top)
        reason: FinishReason | None = None
        if drawn.token in self.stop_token_ids:
            reason = "stop"
        elif len(self.token_ids) >= self.request.max_tokens:
            reason = "length"
        if self.listener is not None:
            chunk = (drawn.token,), (drawn.logprob,), (drawn.version,), (drawn.top,)
            self.listener(TokenChunk(*chunk, reason))
        return reason

    def finish(self, reason: FinishReason) -> None:
        """Hand the generation to whoever waits for it."""
        generation = Generation(
            tuple(self.token_ids),
            tuple(self.logprobs),
            to_spans(self.versions),
            reason,
            tuple(self.top_logprobs),
            self.seconds_to_first_token,
        )
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(generation)

    def fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


def to_spans(versions: Sequence[int]) -> tuple[PolicySpan, ...]:
    """Policy versions, one a token, as spans of equal ones."""
    spans: list[PolicySpan] = []
    start = 0
    for version, group in itertools.groupby(versions):
        end = start + len(list(group))
        spans.append(PolicySpan(start, end, version))
        start = end
    return tuple(spans)
