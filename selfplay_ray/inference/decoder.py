"""The batch an engine decodes: who runs, what is prefilled and what is forked. Single-threaded.

Whole groups are admitted; requests that share a prompt share one prefill, or go on from a kept prefix; and who has run
its prompt joins those who decode for their next step (continuous batching, Yu et al. 2022, OSDI).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.adapters import Adapter, Adapters
from selfplay_ray.inference.admission import Admission, KVBudget, default_kv_bytes
from selfplay_ray.inference.batch import DecodeBatch, Prompts, Row
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoding import WORTH_KEEPING, Decoding, Drawn, Listener
from selfplay_ray.inference.forward import LayerCaches, forward_of
from selfplay_ray.inference.prefixes import PrefixCache
from selfplay_ray.inference.requests import EngineStats, Generation, GenerationRequest
from selfplay_ray.types import FinishReason

MOST_RESTARTS = 3
"""How often a prompt is begun again because weights have changed: past that it goes on, or a server whose weights
change faster than it can run a long prompt would never come to its end."""

UNDISTURBED = 4
"""How many times as many prompt tokens are run in a step when nobody decodes."""

COMPANY = 256
"""Tokens of prompts that are worth a forward pass of their own: of fewer most of it is reading the weights."""

PATIENCE = 8
"""Steps that fewer tokens wait for more, while requests wait for a place: as soon as one is free, more will come."""


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
        self._prompts = Prompts(self._forward, self.adapters)
        self._batch = DecodeBatch(self._forward, self.adapters)
        self.adapters.select([self.adapters.base])
        self.budget = KVBudget(settings.kv_cache_bytes or default_kv_bytes(), *self._forward.kv_bytes())
        self._end_of_turn = frozenset(stop_token_ids)
        kept = settings.prefix_cache_bytes
        self._prefixes = PrefixCache(
            self.budget.capacity // 4 if kept is None else kept, settings.prefix_seconds
        )
        self._tickets = itertools.count()
        self._admission = Admission(settings, self.budget, self.adapters.can_mix)
        self._running: dict[int, Decoding] = {}  # by ticket
        self._waited = 0  # steps, by prompts for company
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
        decoding = Decoding(next(self._tickets), request, adapter, stops, future, listener)
        decoding.shares = self._settings.fork
        self._admission.add(decoding)
        self._counters.prompt_tokens += len(request.prompt_token_ids)

    def cancel(self, future: Future[Generation]) -> None:
        """Forget the request of ``future``; its place in the batch is free at once."""
        if not self._admission.discard(future):
            for decoding in [running for running in self._running.values() if running.future is future]:
                self._remove(decoding)
        self._measure()

    def step(self) -> None:
        """Admit what fits, run some of the prompts and one step of decoding, finish what is finished."""
        started = time.perf_counter()
        admitted = self._admit()
        self._prompts.enter([row for row in admitted if not row[0].prefilled])
        to_decode = [row for row in admitted if row[0].prefilled]
        for decoding, caches in self._run_prompts(alone=not (self._batch or to_decode)):
            to_decode += self._prefilled(decoding, caches)
        self._counters.reused_tokens += sum(decoding.covered for decoding, _ in to_decode)
        self._batch.enter_from(self._prompts, to_decode)
        self._take(self._batch.step())
        self._compact()
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
        """Give up what is unfinished with ``error``, and the threads."""
        for decoding in [*self._admission, *self._running.values()]:
            decoding.fail(error)
        self._admission.clear()
        self._running.clear()
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
        self._kv_bytes = self._prompts.nbytes + self._batch.nbytes + self._prefixes.nbytes

    def _admit(self) -> list[Row]:
        """Those who are admitted now, but for those who wait for another's prefill."""
        admitted: list[Row] = []
        while group := self._admission.next_group(self._running.values()):
            self._running.update((decoding.ticket, decoding) for decoding in group)
            self._make_room(group)
            for decoding in group:
                decoding.prompt_change = decoding.adapter.changes
                row = self._start(decoding)
                if row is not None:
                    admitted.append(row)
        return admitted

    def _make_room(self, entering: Collection[Decoding] = ()) -> None:
        """Prefixes take what running requests leave, and no longer than they may."""
        self._prefixes.expire()
        self._prefixes.shrink(self.budget.capacity - self.budget.reserved(self._running.values()))
        self._compact(self.budget.reserved(entering))

    def _compact(self, more: int = 0) -> None:
        """Where rows and ``more`` bytes are more than there may be, who has left takes none."""
        if self._prompts.nbytes + self._batch.nbytes + more > self.budget.capacity:
            self._prompts.compact()
            self._batch.compact()

    def _start(self, decoding: Decoding) -> Row | None:
        """Where it begins: with nothing, or with what is kept; None if it waits for another's run of the same head."""
        head, caches = decoding.head, self._forward.new_caches()
        decoding.held = decoding.drawn = 0
        if decoding.shares and head:
            if decoding.prefill in self._sharing:
                self._sharing[decoding.prefill].append(decoding)
                return None
            kept = self._prefixes.longest(decoding.adapter, head)
            self._counters.prefix_queries += 1
            self._counters.prefix_hits += kept is not None
            decoding.held, caches = kept or (0, caches)
            if not decoding.prefilled:
                self._sharing[decoding.prefill] = [decoding]
        decoding.covered = decoding.held
        return decoding, caches

    def _run_prompts(self, *, alone: bool) -> list[Row]:
        """Run some of the prompts, unless they had better wait for others; those that have run. If nobody decodes,
        nobody is held up by them."""
        if not self._prompts:
            self._waited = 0
            return []
        most = self._settings.prefill_step_size
        company = self._prompts.left >= min(COMPANY, most)
        if self._admission and not (alone or company) and self._waited < PATIENCE:
            self._waited += 1
            return []
        self._waited = 0
        before = self._prompts.left
        finished = self._prompts.run(most * UNDISTURBED if alone else most)
        self._counters.prefilled_tokens += before - self._prompts.left
        return finished

    def _prefilled(self, leader: Decoding, caches: LayerCaches) -> list[Row]:
        """Keep what ``leader`` has run for those to come; who goes on with it now."""
        if not self._leads(leader):
            return [(leader, caches)]
        self._keep(leader, caches)
        sharing = self._sharing.pop(leader.prefill)
        for decoding in sharing[1:]:
            decoding.held = decoding.covered = leader.held
        return [(decoding, caches) for decoding in sharing]

    def _leads(self, decoding: Decoding) -> bool:
        """Whether a prefill is being run for ``decoding``, and maybe for others who wait for it."""
        sharing = self._sharing.get(decoding.prefill)
        return sharing is not None and sharing[0] is decoding

    def _keep(self, decoding: Decoding, caches: LayerCaches) -> None:
        """Keep what it holds for later, unless weights changed while it was being run."""
        adapter = decoding.adapter
        unchanged = decoding.prompt_change == adapter.changes and self.adapters.holds(adapter)
        if decoding.shares and unchanged:
            self._prefixes.keep(adapter, decoding.tokens_held, caches)
            self._make_room()

    def _take(self, drawn: Iterable[tuple[Decoding, Drawn]]) -> None:
        """Hand over the tokens that were drawn, and what has ended with them."""
        ended: dict[Decoding, FinishReason] = {}
        for decoding, token in drawn:
            reason = decoding.take(token)
            self._counters.generated_tokens += 1
            if reason is not None:
                ended[decoding] = reason
        for decoding in ended:
            if len(decoding.token_ids) >= WORTH_KEEPING:
                self._keep(decoding, self._batch.held(decoding))
            del self._running[decoding.ticket]
        self._batch.leave(ended)
        for decoding, reason in ended.items():
            decoding.finish(reason)

    def _restart(self, adapter: Adapter) -> None:
        """Let those of ``adapter`` of whom nothing was drawn yet begin again."""
        for decoding in list(self._running.values()):
            if decoding.adapter is adapter and not decoding.drawn and decoding.restarts < MOST_RESTARTS:
                if decoding.ticket in self._running:  # a leader that was removed has sent its followers back
                    self._remove(decoding)
                    self._admission.add(decoding)
                decoding.restarts += 1
                self._counters.restarts += 1

    def _remove(self, decoding: Decoding) -> None:
        del self._running[decoding.ticket]
        self._batch.leave([decoding])
        self._prompts.leave([decoding])
        sharing = self._sharing.get(decoding.prefill, [])
        if self._leads(decoding):  # its followers wait for a prefill that is gone: one of them leads the next
            for follower in self._sharing.pop(decoding.prefill)[1:]:
                del self._running[follower.ticket]
                self._admission.add(follower)
        elif decoding in sharing:
            sharing.remove(decoding)
