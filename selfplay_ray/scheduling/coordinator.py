"""What the central arena does all day: admits requests at the pace that staleness allows, has them run, and
credits each group when all of it is in."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfplay_ray.arena import Arena, group_name
from selfplay_ray.config import RunConfig
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.scheduling.messages import Orders, Report
from selfplay_ray.scheduling.scheduler import Scheduler
from selfplay_ray.types import GenerateResult, RolloutGroup


@dataclass(frozen=True, slots=True)
class CreditedGroup:
    """A complete group, ready to be learned from, and the trees of the ``batch`` it was made of."""

    batch: int
    group: RolloutGroup
    results: list[GenerateResult]


@dataclass(slots=True)
class _PendingGroup:
    """A group of root requests in order, and the results that are in."""

    name: str
    batch: int
    request_ids: list[str] = field(default_factory=list)
    results: dict[str, GenerateResult] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.request_ids)


class Coordinator:
    """Paces, schedules and credits. Root requests are admitted while fewer than

        (max_staleness + version + 1) * batch_size

    have been admitted in all, so that nothing is generated that would be too old when its turn comes (Fu et
    al. 2025, AReaL, section 4.1), and never more than ``num_steps`` need. With ``max_staleness`` 0 groups are
    credited in the order of their requests, so that a run can be repeated to the bit.
    """

    def __init__(self, arena: Arena, config: RunConfig) -> None:
        self.arena = arena
        self.version = 0
        self.scheduler = Scheduler()
        self.budget = ErrorBudget(config.error_budget)
        self._batch_size = config.batch_size
        self._max_staleness = config.max_staleness
        self._total = config.num_steps * config.batch_size
        self._admitted = 0
        self._batches = 0
        self._pending: dict[str, _PendingGroup] = {}  # in the order of admission
        self._group_of: dict[str, str] = {}  # root request id -> group name
        arena.configure(config)

    @property
    def done(self) -> bool:
        """Whether everything the run will ever ask for has been played and credited."""
        return self._admitted >= self._total and not self._pending

    def handle(self, worker: str, report: Report) -> None:
        """Take in a worker's report.

        Raises:
            ErrorBudgetExceeded: too many episodes have failed.
        """
        for spawn in report.spawned:
            spawn.requests[:] = [self.arena.resolve_artifact(request) for request in spawn.requests]
        for rollout in self.scheduler.handle(worker, report):
            self.budget.count(rollout)
        for result in self.scheduler.take_finished():
            self._pending[self._group_of.pop(result.rollout.id)].results[result.rollout.id] = result

    def take_orders(self) -> dict[str, Orders]:
        """Admit what may be admitted, and return what each worker is to be told."""
        self._admit()
        return self.scheduler.take_orders(self.version)

    def take_groups(self) -> list[CreditedGroup]:
        """Credit and return the groups that became complete.

        Raises:
            CreditError: a group can't be compared.
        """
        credited = []
        for pending in list(self._pending.values()):
            if pending.complete:
                del self._pending[pending.name]
                results = [pending.results[request_id] for request_id in pending.request_ids]
                group = self.arena.credit_group(pending.name, results)
                credited.append(CreditedGroup(pending.batch, group, results))
            elif self._max_staleness == 0:
                break
        return credited

    def _admit(self) -> None:
        limit = min((self._max_staleness + self.version + 1) * self._batch_size, self._total)
        while self._admitted < limit:
            requests = self.arena.next_batch()
            for request in requests:
                name = group_name(self._batches, request.group)
                self._pending.setdefault(name, _PendingGroup(name, self._batches)).request_ids.append(
                    request.id
                )
                self._group_of[request.id] = name
            self.scheduler.submit([self.arena.resolve_artifact(request) for request in requests])
            self._admitted += len(requests)
            self._batches += 1
