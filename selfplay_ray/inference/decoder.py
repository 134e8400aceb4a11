"""The batch an engine decodes: who waits, who runs, what is prefilled and what is forked. Single-threaded.

Continuous batching itself is mlx-lm's ``BatchGenerator``. Around it: priorities, one prefill for requests that
share a prompt, kept prefixes, and for every token its logprob and the policy version that drew it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import cast

import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch, StopSequences

from selfplay_ray.errors import ConfigError
from selfplay_ray.inference.prefixes import PrefixCache
from selfplay_ray.inference.requests import (
    EngineStats,
    Generation,
    GenerationRequest,
    TokenChunk,
    TopTokens,
)
from selfplay_ray.inference.rows import Draw, LayerCaches, Row, RowState, SampledModel
from selfplay_ray.types import FinishReason, PolicySpan

Tokens = tuple[int, ...]
Listener = Callable[[TokenChunk], None]


WORTH_KEEPING = 32
"""Replies of fewer tokens are not kept for a next turn: running them again after their prompt, which is kept, takes
about as long as copying their keys and values out of the batch, which every sample of a group would have to pay."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Most sequences decoded at once, most prompt tokens run between two steps, what is kept and whether at all.

    With ``fork`` off every prompt is run on its own, as if nothing had been run before it.

    Raises:
        ConfigError: a bound that leaves nothing to do.
    """

    max_batch_size: int
    prefill_step_size: int
    prefix_cache_bytes: int
    fork: bool

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.prefill_step_size < 1 or self.prefix_cache_bytes < 0:
            raise ConfigError(
                f"an engine needs a batch size and a prefill step of 1 or more, and 0 or more bytes for prefixes; "
                f"got {self.max_batch_size}, {self.prefill_step_size} and {self.prefix_cache_bytes}"
            )


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is known of a token beside itself."""

    logprob: float
    version: int
    top: TopTokens


@dataclass(slots=True, eq=False)
class Decoding:
    """One request on its way: its place in the queue, then its tokens as they come."""

    ticket: int
    request: GenerationRequest
    future: Future[Generation]
    stop_token_ids: frozenset[int]
    listener: Listener | None = None
    started_at_version: int = 0
    uid: int | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    top_logprobs: list[TopTokens] = field(default_factory=list)

    def __lt__(self, other: Decoding) -> bool:
        """Higher priority first, then who came first."""
        return (-self.request.priority, self.ticket) < (-other.request.priority, other.ticket)

    @property
    def head(self) -> Tokens:
        """What is prefilled: all of the prompt but its last token, with which decoding begins."""
        return self.request.prompt_token_ids[:-1]

    @property
    def prefill(self) -> tuple[int, Tokens]:
        """Requests with the same one can share a prefill: the policy that runs it, and the tokens."""
        return self.started_at_version, self.head

    @property
    def row(self) -> Row:
        request = self.request
        return Row(
            self.ticket,
            request.seed,
            request.temperature,
            request.min_tokens,
            self.stop_token_ids,
            request.top_logprobs,
        )

    def take(self, token: int, drawn: Drawn) -> None:
        self.token_ids.append(token)
        self.logprobs.append(drawn.logprob)
        self.versions.append(drawn.version)
        self.top_logprobs.append(drawn.top)

    def tell(self, token: int, drawn: Drawn, reason: FinishReason | None) -> None:
        """Tell whoever listens of a token."""
        if self.listener is not None:
            self.listener(TokenChunk((token,), (drawn.logprob,), (drawn.version,), (drawn.top,), reason))

    def generation(self, reason: FinishReason) -> Generation:
        spans, tops = to_spans(self.versions), tuple(self.top_logprobs)
        return Generation(tuple(self.token_ids), tuple(self.logprobs), spans, reason, tops)


@dataclass(slots=True)
class Counters:
    """Totals since the decoder was made."""

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    swap_seconds: float = 0.0


class Decoder:
    """Decodes requests in one continuous batch. Everything on it happens in the thread that made it."""

    def __init__(self, model: nn.Module, stop_token_ids: Collection[int], settings: BatchSettings) -> None:
        self._model = SampledModel(model)
        self._end_of_turn = frozenset(stop_token_ids)
        self._stops: dict[frozenset[int], StopSequences] = {}
        self._generator = BatchGenerator(
            cast(nn.Module, self._model),  # it is only ever called
            sampler=self._model.draw,
            completion_batch_size=settings.max_batch_size,
            prefill_batch_size=settings.max_batch_size,  # else a group is split into prefills of 8
            prefill_step_size=settings.prefill_step_size,
        )
        self._max_batch_size = settings.max_batch_size
        self._fork = settings.fork
        self._prefixes = PrefixCache(settings.prefix_cache_bytes)
        self._tickets = itertools.count()
        self._waiting: list[Decoding] = []
        self._running: dict[int, Decoding] = {}  # by ticket
        self._by_uid: dict[int, Decoding] = {}
        self._prefills: dict[tuple[int, Tokens], list[Decoding]] = {}  # who shares each, its leader first
        self._counters = Counters()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def policy_version(self) -> int:
        return self._model.version

    def submit(
        self, request: GenerationRequest, future: Future[Generation], listener: Listener | None = None
    ) -> None:
        """Queue ``request``; its generation is set on ``future``, unless that is cancelled first.

        ``listener`` is called with every token as it comes, before the generation is set.
        """
        stops = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            stops |= self._end_of_turn
        heapq.heappush(self._waiting, Decoding(next(self._tickets), request, future, stops, listener))
        self._counters.prompt_tokens += len(request.prompt_token_ids)

    def cancel(self, future: Future[Generation]) -> None:
        """Forget the request of ``future``; its place in the batch is free at once."""
        self._waiting = [waiting for waiting in self._waiting if waiting.future is not future]
        heapq.heapify(self._waiting)
        for decoding in [running for running in self._running.values() if running.future is future]:
            self._remove(decoding)

    def step(self) -> None:
        """Admit what fits, run one step of prefill and one of decoding, finish what is finished."""
        started = time.perf_counter()
        self._admit()
        # A call returns the tokens drawn in the call before it, so these are the draws of what it returns.
        draws = self._model.take_draws()
        prefilled, generated = self._generator.next()
        drawn = dict(_by_ticket(draws))
        for response in generated:
            self._take(response, drawn[self._by_uid[response.uid].ticket])
        for response in prefilled:
            if response.progress[0] == response.progress[1] - 1:
                self._fork_prefilled(response)
        self._counters.busy_seconds += time.perf_counter() - started

    def change_policy(self, version: int, seconds: float) -> None:
        """The weights have just been changed to ``version``, which took ``seconds``."""
        self._model.version = version
        self._prefixes.clear()
        self._counters.swap_seconds += seconds

    def close(self, error: BaseException) -> None:
        """Give up what is unfinished with ``error``, and the generator."""
        for decoding in [*self._waiting, *self._running.values()]:
            if decoding.future.set_running_or_notify_cancel():
                decoding.future.set_exception(error)
        self._waiting, self._running = [], {}
        self._generator.close()

    def stats(self) -> EngineStats:
        counters = self._counters
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            prompt_tokens=counters.prompt_tokens,
            prefilled_tokens=counters.prefilled_tokens,
            generated_tokens=counters.generated_tokens,
            busy_seconds=counters.busy_seconds,
            swap_seconds=counters.swap_seconds,
        )

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_batch_size:
            decoding = heapq.heappop(self._waiting)
            self._running[decoding.ticket] = decoding
            decoding.started_at_version = self.policy_version
            self._start(decoding)

    def _start(self, decoding: Decoding) -> None:
        """Prefill the head, wait for another's prefill of the same head, or go on from a kept one."""
        head = decoding.head
        if not self._fork or not head:
            self._insert([decoding], 0, self._model.new_caches())
            return
        if decoding.prefill in self._prefills:
            self._prefills[decoding.prefill].append(decoding)
            return
        covered, caches = self._prefixes.longest(head) or (0, self._model.new_caches())
        if covered < len(head):
            self._prefills[decoding.prefill] = [decoding]
        self._insert([decoding], covered, caches)

    def _insert(self, decodings: Sequence[Decoding], covered: int, caches: LayerCaches) -> None:
        """Start ``decodings``, which share a head, where ``caches`` hold the first ``covered`` tokens of it."""
        prompts = [decoding.request.prompt_token_ids for decoding in decodings]
        uids = self._generator.insert(
            [list(prompt[covered:]) for prompt in prompts],
            max_tokens=[decoding.request.max_tokens for decoding in decodings],
            caches=[[*caches, RowState.of(decoding.row)] for decoding in decodings],
            all_tokens=[list(prompt[:covered]) for prompt in prompts],
            stop_sequences=[self._stop_sequences(decoding.stop_token_ids) for decoding in decodings],
        )
        for decoding, uid in zip(decodings, uids, strict=True):
            decoding.uid = uid
            self._by_uid[uid] = decoding
        self._counters.prefilled_tokens += sum(len(decoding.head) - covered for decoding in decodings)

    def _fork_prefilled(self, response: PromptProcessingBatch.Response) -> None:
        """Let those who share this prefill start from it, and keep it for those to come."""
        leader = self._by_uid[response.uid]
        if not self._leads(leader):
            return
        sharing = self._prefills.pop(leader.prefill)
        caches, _ = self._generator.extract_cache([response.uid])[response.uid]
        self._keep(leader, leader.head, caches)
        if len(sharing) > 1:
            # The leader starts again with the others: merging it with them would copy them all.
            self._generator.remove([response.uid])
            del self._by_uid[response.uid]
            self._insert(sharing, len(leader.head), caches[:-1])

    def _leads(self, decoding: Decoding) -> bool:
        """Whether a prefill is being run for ``decoding``, and maybe for others who wait for it."""
        sharing = self._prefills.get(decoding.prefill)
        return sharing is not None and sharing[0] is decoding

    def _keep(self, decoding: Decoding, tokens: Tokens, caches: LayerCaches) -> None:
        """Keep a prefix for later, unless weights changed while it was being run."""
        if self._fork and decoding.started_at_version == self.policy_version:
            self._prefixes.keep(tokens, caches[:-1])

    def _stop_sequences(self, token_ids: frozenset[int]) -> StopSequences:
        if token_ids not in self._stops:
            if len(self._stops) > 1000:  # whatever clients may think of
                self._stops.clear()
            self._stops[token_ids] = StopSequences([[token] for token in sorted(token_ids)])
        return self._stops[token_ids]

    def _take(self, response: GenerationBatch.Response, drawn: Drawn) -> None:
        decoding = self._by_uid[response.uid]
        reason = cast("FinishReason | None", response.finish_reason)
        decoding.take(response.token, drawn)
        decoding.tell(response.token, drawn, reason)
        self._counters.generated_tokens += 1
        if reason is None:
            return
        worth_keeping = len(decoding.token_ids) >= WORTH_KEEPING
        if worth_keeping and response.all_tokens is not None and response.prompt_cache is not None:
            self._keep(decoding, tuple(response.all_tokens), response.prompt_cache)
        generation = decoding.generation(reason)
        del self._by_uid[response.uid], self._running[decoding.ticket]
        if decoding.future.set_running_or_notify_cancel():
            decoding.future.set_result(generation)

    def _remove(self, decoding: Decoding) -> None:
        del self._running[decoding.ticket]
        if decoding.uid is None:
            self._prefills[decoding.prefill].remove(decoding)
            return
        del self._by_uid[decoding.uid]
        self._generator.remove([decoding.uid])
        if self._leads(decoding):  # its followers wait for a prefill that is gone: one of them leads the next
            for follower in self._prefills.pop(decoding.prefill)[1:]:
                del self._running[follower.ticket]
                heapq.heappush(self._waiting, follower)


def to_spans(versions: Sequence[int]) -> tuple[PolicySpan, ...]:
    """Policy versions, one a token, as spans of equal ones."""
    spans: list[PolicySpan] = []
    start = 0
    for version, group in itertools.groupby(versions):
        end = start + len(list(group))
        spans.append(PolicySpan(start, end, version))
        start = end
    return tuple(spans)


def _by_ticket(draws: Iterable[Draw]) -> Iterable[tuple[int, Drawn]]:
    for draw in draws:
        logprobs = cast(list[float], draw.logprobs.tolist())
        for ticket, logprob, top in zip(draw.tickets, logprobs, draw.top_tokens(), strict=True):
            yield ticket, Drawn(logprob, draw.version, top)
