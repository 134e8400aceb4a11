"""The batch an engine decodes: who runs, what is prefilled and what is forked. Single-threaded.

Continuous batching itself is mlx-lm's ``BatchGenerator``. Around it: admission of whole groups, one prefill for
requests that share a prompt, kept prefixes, and for every token its logprob and the policy version that drew it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast

import mlx.nn as nn
import numpy as np
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch, StopSequences

from selfplay_ray.inference.adapters import Adapter, Adapters
from selfplay_ray.inference.admission import Admission, KVBudget, default_kv_bytes
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoding import WORTH_KEEPING, Decoding, Drawn, Listener
from selfplay_ray.inference.forward import LayerCaches, forward_of
from selfplay_ray.inference.prefixes import PrefixCache
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest
from selfplay_ray.inference.rows import Draw, RowState, SampledModel
from selfplay_ray.types import FinishReason

MOST_RESTARTS = 3
"""How often a prompt is begun again because weights have changed: past that it goes on, or a server whose weights
change faster than it can run a long prompt would never come to its end."""


@dataclass(slots=True)
class Counters:
    """Totals since the decoder was made."""

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    swaps: int = 0
    swap_seconds: float = 0.0
    restarts: int = 0


class Decoder:
    """Decodes requests in one continuous batch. Everything on it happens in the thread that made it, but for
    ``stats``."""

    def __init__(
        self,
        model: nn.Module,
        stop_token_ids: Collection[int],
        settings: BatchSettings | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._settings = settings = settings or BatchSettings()
        self.adapters = adapters or Adapters(model, None, max_adapters=0)
        self._forward = forward_of(model)
        self._model = SampledModel(self._forward, self.adapters)
        self.adapters.select([self.adapters.base])
        self.budget = KVBudget(settings.kv_cache_bytes or default_kv_bytes(), *self._forward.kv_bytes())
        self._end_of_turn = frozenset(stop_token_ids)
        self._stops: dict[frozenset[int], StopSequences] = {}
        self._generator = BatchGenerator(
            cast(nn.Module, self._model),  # it is only ever called
            sampler=self._model.draw,
            completion_batch_size=settings.max_batch_size,
            prefill_batch_size=settings.max_batch_size,  # else a group is split into prefills of 8
            prefill_step_size=settings.prefill_step_size,
        )
        kept = settings.prefix_cache_bytes
        self._prefixes = PrefixCache(
            self.budget.capacity // 4 if kept is None else kept, settings.prefix_seconds
        )
        self._tickets = itertools.count()
        self._admission = Admission(settings, self.budget, self.adapters.can_mix)
        self._running: dict[int, Decoding] = {}  # by ticket
        self._by_uid: dict[int, Decoding] = {}
        self._prefilling: set[int] = set()  # uids
        self._sharing: dict[object, list[Decoding]] = {}  # who shares a prefill that is run, its leader first
        self._counters = Counters()
        self._kv_bytes = 0

    @property
    def busy(self) -> bool:
        return bool(self._admission or self._running)

    @property
    def holds_prefixes(self) -> bool:
        return self._prefixes.nbytes > 0

    def submit(
        self, request: GenerationRequest, future: Future[Generation], listener: Listener | None = None
    ) -> None:
        """Queue ``request``; its generation is set on ``future``, unless that is cancelled first.

        ``listener`` is called with every token as it comes, before the generation is set.

        Raises:
            QueueFullError: as many wait as may.
            UnknownNameError: its adapter isn't loaded.
        """
        self._admission.check_room(request, len(self._running))
        stops = frozenset(request.stop_token_ids)
        if not request.ignore_eos:
            stops |= self._end_of_turn
        adapter = self.adapters.find(request.adapter)
        self._admission.add(Decoding(next(self._tickets), request, adapter, stops, future, listener))
        self._counters.prompt_tokens += len(request.prompt_token_ids)

    def cancel(self, future: Future[Generation]) -> None:
        """Forget the request of ``future``; its place in the batch is free at once."""
        if not self._admission.discard(future):
            for decoding in [running for running in self._running.values() if running.future is future]:
                self._remove(decoding)
        self._measure()

    def step(self) -> None:
        """Admit what fits, run one step of prefill and one of decoding, finish what is finished."""
        started = time.perf_counter()
        self._admit()
        self._bound_prefill()
        # A call returns the tokens drawn in the call before it, so these are the draws of what it returns.
        draws = self._model.take_draws()
        prefilled, generated = self._generator.next()
        drawn = dict(_by_ticket(draws))
        for response in generated:
            self._take(response, drawn[self._by_uid[response.uid].ticket])
        for response in prefilled:
            if response.progress[0] == response.progress[1] - 1:
                self._fork_prefilled(response)
        self._measure()
        self._counters.busy_seconds += time.perf_counter() - started

    def load_adapter(self, name: str, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Add an adapter, or change its weights; raises AdapterError, and then nothing has changed.

        Who has drawn a token goes on, on the keys and values of before; whose prompt is still being run begins it
        again: of a sample's tokens none may be drawn by one policy from what another has made of the prompt.
        """
        started = time.perf_counter()
        adapter = self.adapters.load(name, weights, version)
        if self.adapters.whole:
            self._forward.take_weights()
        self._prefixes.drop(adapter)
        self._restart(adapter)
        self._measure()
        self._counters.swaps += 1
        self._counters.swap_seconds += time.perf_counter() - started

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; those there are go on to their end. Raises UnknownNameError."""
        self._prefixes.drop(self.adapters.unload(name))
        self._measure()

    def expire(self) -> None:
        """Let go of prefixes kept for too long."""
        self._prefixes.expire()
        self._measure()

    def close(self, error: BaseException) -> None:
        """Give up what is unfinished with ``error``, and the generator."""
        for decoding in [*self._admission, *self._running.values()]:
            decoding.fail(error)
        self._admission.clear()
        self._running.clear()
        self._generator.close()
        self._forward.close()

    def stats(self) -> EngineStats:
        """May be called in any thread."""
        counters = {name: getattr(self._counters, name) for name in Counters.__slots__}
        return EngineStats(
            running=len(self._running),
            waiting=len(self._admission),
            kv_bytes=self._kv_bytes,
            prefix_bytes=self._prefixes.nbytes,
            kv_capacity_bytes=self.budget.capacity,
            adapters=len(self.adapters.loaded),
            **counters,
        )

    def _measure(self) -> None:
        """What keys and values take now: to be told in other threads, which must not look at the batch itself."""
        self._kv_bytes = self._generator.prompt_cache_nbytes + self._prefixes.nbytes

    def _admit(self) -> None:
        while group := self._admission.next_group(self._running.values()):
            self._running.update((decoding.ticket, decoding) for decoding in group)
            self._make_room()
            for decoding in group:
                decoding.prompt_change = decoding.adapter.changes
                self._start(decoding)

    def _make_room(self) -> None:
        """Prefixes take what running requests leave, and no longer than they may."""
        self._prefixes.expire()
        self._prefixes.shrink(self.budget.capacity - self.budget.reserved(self._running.values()))

    def _start(self, decoding: Decoding) -> None:
        """Prefill the head, wait for another's prefill of the same head, or go on from a kept one."""
        head = decoding.head
        if not self._settings.fork or not head:
            self._insert([decoding], 0, self._forward.new_caches())
            return
        if decoding.prefill in self._sharing:
            self._sharing[decoding.prefill].append(decoding)
            self._counters.reused_tokens += len(head)
            return
        kept = self._prefixes.longest(decoding.adapter, head)
        self._counters.prefix_queries += 1
        self._counters.prefix_hits += kept is not None
        covered, caches = kept or (0, self._forward.new_caches())
        self._counters.reused_tokens += covered
        if covered < len(head):
            self._sharing[decoding.prefill] = [decoding]
        self._insert([decoding], covered, caches)

    def _insert(self, decodings: Sequence[Decoding], covered: int, caches: LayerCaches) -> None:
        """Start ``decodings``, which share a head, where ``caches`` hold the first ``covered`` tokens of it."""
        prompts = [decoding.request.prompt_token_ids for decoding in decodings]
        uids = self._generator.insert(
            [list(prompt[covered:]) for prompt in prompts],
            max_tokens=[decoding.request.max_tokens for decoding in decodings],
            caches=[
                [
                    *self._forward.growing(caches, decoding.most_tokens),
                    RowState.of(decoding.row(alike=self._settings.fork)),
                ]
                for decoding in decodings
            ],
            all_tokens=[list(prompt[:covered]) for prompt in prompts],
            stop_sequences=[self._stop_sequences(decoding.stop_token_ids) for decoding in decodings],
        )
        for decoding, uid in zip(decodings, uids, strict=True):
            decoding.uid = uid
            self._by_uid[uid] = decoding
            if covered < len(decoding.head):
                self._prefilling.add(uid)
                self._counters.prefilled_tokens += len(decoding.head) - covered

    def _bound_prefill(self) -> None:
        """Share what may be run between two decode steps among the prompts; if nobody decodes, nobody is held up."""
        others_decode = len(self._by_uid) > len(self._prefilling)
        shares = len(self._prefilling) if others_decode and self._prefilling else 1
        self._generator.prefill_step_size = max(1, self._settings.prefill_step_size // shares)

    def _fork_prefilled(self, response: PromptProcessingBatch.Response) -> None:
        """Let those who share this prefill start from it, and keep it for those to come."""
        leader = self._by_uid[response.uid]
        self._prefilling.discard(response.uid)
        if not self._leads(leader):
            return
        sharing = self._sharing.pop(leader.prefill)
        caches, _ = self._generator.extract_cache([response.uid])[response.uid]
        self._keep(leader, leader.head, caches)
        if len(sharing) > 1:
            # The leader starts again with the others: merging it with them would copy them all.
            self._generator.remove([response.uid])
            del self._by_uid[response.uid]
            self._insert(sharing, len(leader.head), caches[:-1])

    def _leads(self, decoding: Decoding) -> bool:
        """Whether a prefill is being run for ``decoding``, and maybe for others who wait for it."""
        sharing = self._sharing.get(decoding.prefill)
        return sharing is not None and sharing[0] is decoding

    def _keep(self, decoding: Decoding, tokens: tuple[int, ...], caches: LayerCaches) -> None:
        """Keep a prefix for later, unless weights changed while it was being run."""
        adapter = decoding.adapter
        unchanged = decoding.prompt_change == adapter.changes and self.adapters.holds(adapter)
        if self._settings.fork and unchanged:
            self._prefixes.keep(adapter, tokens, caches[:-1])
            self._make_room()

    def _stop_sequences(self, token_ids: frozenset[int]) -> StopSequences:
        if token_ids not in self._stops:
            if len(self._stops) > 1000:  # whatever clients may think of
                self._stops.clear()
            self._stops[token_ids] = StopSequences([[token] for token in sorted(token_ids)])
        return self._stops[token_ids]

    def _take(self, response: GenerationBatch.Response, drawn: Drawn) -> None:
        decoding = self._by_uid[response.uid]
        reason = cast("FinishReason | None", response.finish_reason)
        decoding.take(response.token, drawn, reason)
        self._counters.generated_tokens += 1
        if reason is None:
            return
        worth_keeping = len(decoding.token_ids) >= WORTH_KEEPING
        if worth_keeping and response.all_tokens is not None and response.prompt_cache is not None:
            self._keep(decoding, tuple(response.all_tokens), response.prompt_cache)
        del self._by_uid[response.uid], self._running[decoding.ticket]
        decoding.finish(reason)

    def _restart(self, adapter: Adapter) -> None:
        """Let those of ``adapter`` of whom nothing was drawn yet begin again."""
        begun = self._model.drawn_tickets
        for decoding in list(self._running.values()):
            drawn = bool(decoding.token_ids) or decoding.ticket in begun
            if decoding.adapter is adapter and not drawn and decoding.restarts < MOST_RESTARTS:
                if decoding.ticket in self._running:  # a leader that was removed has sent its followers back
                    self._remove(decoding)
                    self._admission.add(decoding)
                decoding.restarts += 1
                self._counters.restarts += 1

    def _remove(self, decoding: Decoding) -> None:
        del self._running[decoding.ticket]
        if decoding.uid is None:
            self._sharing[decoding.prefill].remove(decoding)
            return
        leads = self._leads(decoding)
        self._generator.remove([decoding.uid])
        self._prefilling.discard(decoding.uid)
        del self._by_uid[decoding.uid]
        decoding.uid = None
        if leads:  # its followers wait for a prefill that is gone: one of them leads the next
            for follower in self._sharing.pop(decoding.prefill)[1:]:
                del self._running[follower.ticket]
                self._admission.add(follower)


def _by_ticket(draws: Iterable[Draw]) -> Iterable[tuple[int, Drawn]]:
    for draw in draws:
        logprobs = cast(list[float], draw.logprobs.tolist())
        rows = zip(draw.tickets, logprobs, draw.versions, draw.top_tokens(), strict=True)
        for ticket, logprob, version, top in rows:
            yield ticket, Drawn(logprob, version, top)
