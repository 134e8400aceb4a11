"""Who may enter the batch: whole groups, in their order, as far as there is memory for their keys and values."""

from __future__ import annotations

import bisect
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import mlx.core as mx

from selfplay_ray.errors import QueueFullError
from selfplay_ray.inference.adapters import Adapter
from selfplay_ray.inference.batch_settings import BatchSettings
from selfplay_ray.inference.decoding import Decoding, Tokens
from selfplay_ray.inference.kv_cache import ROOM
from selfplay_ray.inference.requests import Generation, GenerationRequest


class WaitingGroups:
    """Requests that wait. Samples of one prompt wait together, at the place of the first of them.

    A group is to enter as one, so that its prompt is run once and its samples are drawn by one policy; nobody
    overtakes it meanwhile, or it might wait for ever.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[Adapter, Tokens], list[Decoding]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Decoding]:
        for group in self._groups.values():
            yield from group

    def add(self, decoding: Decoding) -> None:
        bisect.insort(self._groups.setdefault(decoding.group, []), decoding)
        self._count += 1

    def first(self) -> Sequence[Decoding]:
        """The group whose turn it is, in the order of its members; empty if nobody waits."""
        first = min((group[0] for group in self._groups.values()), default=None)
        return tuple(self._groups[first.group]) if first else ()

    def clear(self) -> None:
        self._groups.clear()
        self._count = 0

    def remove(self, decoding: Decoding) -> None:
        group = self._groups[decoding.group]
        group.remove(decoding)
        if not group:
            del self._groups[decoding.group]
        self._count -= 1

    def discard(self, future: Future[Generation]) -> bool:
        """Forget the request of ``future``; whether it waited here."""
        for decoding in self:
            if decoding.future is future:
                self.remove(decoding)
                return True
        return False


@dataclass(frozen=True, slots=True)
class KVBudget:
    """How many bytes keys and values may take, and how many they take: ``per_token`` for each position of a row,
    and ``per_row`` besides, for models whose state doesn't grow."""

    capacity: int
    per_token: int
    per_row: int = 0

    def needed(self, rows: int, longest: int) -> int:
        """Bytes for a batch of ``rows`` that all have room for ``longest``, the longest that one of them may become,
        and a little more."""
        return rows * (self.per_row + self.per_token * (longest + ROOM))

    def rows(self, longest: int) -> int:
        """How many rows of ``longest`` positions there is memory for."""
        return self.capacity // max(1, self.needed(1, longest))

    def reserved(self, decodings: Collection[Decoding]) -> int:
        """Bytes that ``decodings`` may come to take together."""
        return self.needed(len(decodings), max((one.most_tokens for one in decodings), default=0))


class Admission(WaitingGroups):
    """Those who wait, and which of them may enter the batch beside those who run."""

    def __init__(self, settings: BatchSettings, budget: KVBudget, can_mix: bool) -> None:
        super().__init__()
        self._settings = settings
        self._budget = budget
        self._can_mix = can_mix  # whether rows of several adapters may be in one batch

    def check_room(self, request: GenerationRequest, running: int) -> None:
        """Raise QueueFullError if ``request`` would be one too many beside ``running`` and those who wait."""
        limit = self._settings.max_waiting
        if limit is not None and running + len(self) >= limit + self._settings.max_batch_size:
            raise QueueFullError(
                f"request {request.id} found {running} running and {len(self)} waiting, and no more than {limit} "
                f"may wait; try again later"
            )

    def next_group(self, running: Collection[Decoding]) -> Sequence[Decoding]:
        """Those whose turn it is, who wait no longer: if there is room for all of them, else nobody.

        Where there never is, or others of the group run already, they enter as there is room for each.
        """
        group = self.first()
        if not group or not (self._can_mix or all(one.adapter is group[0].adapter for one in running)):
            return ()
        longest = max(one.most_tokens for one in group)
        too_large = len(group) > min(self._settings.max_batch_size, self._budget.rows(longest))
        if too_large or any(one.group == group[0].group for one in running):
            group = group[: max(1, self._room(running, longest))]
        together = [*running, *group]
        if len(together) > self._settings.max_batch_size:
            return ()
        if running and self._budget.reserved(together) > self._budget.capacity:
            return ()
        for decoding in group:
            self.remove(decoding)
        return group

    def _room(self, running: Collection[Decoding], longest: int) -> int:
        """How many rows of ``longest`` positions may enter beside those who run."""
        rows = self._budget.rows(max([longest, *(one.most_tokens for one in running)]))
        return min(self._settings.max_batch_size, rows) - len(running)


def default_kv_bytes() -> int:
    """A quarter of the memory that models run in: the GPU's own, else this machine's."""
    memory = mx.device_info().get("memory_size")  # which a CPU's lacks
    return int(memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 4
