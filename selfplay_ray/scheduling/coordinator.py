"""What the central arena does all day: admits requests at the pace that staleness allows, has them run, and
credits each group when all of it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from selfplay_ray.arena import Arena, group_name
from selfplay_ray.config import RunConfig
from selfplay_ray.error_budget import ErrorBudget
from selfplay_ray.errors import ConfigError
from selfplay_ray.evaluation import Evaluation, eval_requests, score
from selfplay_ray.scheduling.coordinator_state import (
    CoordinatorState,
    decode_state,
    encode_pending,
    encode_state,
)
from selfplay_ray.scheduling.evaluating import EvaluationInFlight, is_of_evaluation
from selfplay_ray.scheduling.messages import Orders, Report
from selfplay_ray.scheduling.scheduler import Scheduler
from selfplay_ray.types import EpisodeRequest, GenerateResult, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True)
class CreditedGroup:
    """A complete group, ready to be learned from, and the trees of the ``batch`` it was made of.

    ``state`` is the coordinator's once the group was credited: kept with the group, it lets a run go on from there.
    """

    batch: int
    group: RolloutGroup
    results: list[GenerateResult]
    state: bytes


@dataclass(slots=True)
class _PendingGroup:
    """A group of root requests in order, and the results that are in. ``admitted_at`` is how many roots had been
    admitted before its batch."""

    name: str
    batch: int
    admitted_at: int
    requests: list[EpisodeRequest] = field(default_factory=list)
    results: dict[str, GenerateResult] = field(default_factory=dict)
    encoded: bytes = b""

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.requests)


class Coordinator:
    """Paces, schedules and credits. Root requests are admitted while fewer than

        (max_staleness + version + 1) * batch_size

    have been admitted in all, so that nothing is generated that would be too old when its turn comes (Fu et
    al. 2025, AReaL, section 4.1), and never more than ``num_steps`` need; where a step needs more than its batch,
    ``extend`` lets in more. With ``max_staleness`` 0 groups are credited in the order of their requests, so that a
    run can be repeated to the bit.
    """

    def __init__(self, arena: Arena, config: RunConfig) -> None:
        self.arena = arena
        self.version = 0
        self.scheduler = Scheduler()
        self.budget = ErrorBudget(config.error_budget)
        self._batch_size = config.batch_size
        self._max_staleness = config.max_staleness
        self._num_steps = config.num_steps
        self._admitted = 0
        self._batches = 0
        self._finished = self._failed = 0  # episodes of groups that were credited
        self._extra: dict[int, int] = {}  # version -> batches beside its own
        self._pending: dict[str, _PendingGroup] = {}  # in the order of admission
        self._restored: list[_PendingGroup] = []  # those of them whose turn hasn't come again
        self._group_of: dict[str, str] = {}  # root request id -> group name
        self._eval_every, self._eval_episodes = config.eval_every, config.eval_episodes
        self._eval_greedy = config.eval_greedy
        self._eval_requests: list[EpisodeRequest] = []
        self._evaluation: EvaluationInFlight | None = None
        arena.configure(config)

    @property
    def done(self) -> bool:
        """Whether everything the run will ever ask for has been played and credited."""
        return self._admitted >= self._total and not self._pending

    def extend(self, version: int, batches: int) -> None:
        """Play ``batches`` more than its own for the step that policy ``version`` takes; may be said twice."""
        self._extra[version] = max(batches, self._extra.get(version, 0))

    def handle(self, worker: str, report: Report) -> None:
        """Take in a worker's report.

        Raises:
            ErrorBudgetExceeded: too many episodes have failed.
        """
        for spawn in report.spawned:
            spawn.requests[:] = [self.arena.resolve_artifact(request) for request in spawn.requests]
        self._take_in(self.scheduler.handle(worker, report))

    def add_worker(self, worker: str) -> None:
        """``worker`` is ready for orders.

        Raises:
            ErrorBudgetExceeded: as ``lose_worker``, of one that was there before.
        """
        self._take_in(self.scheduler.add_worker(worker))

    def lose_worker(self, worker: str) -> None:
        """``worker`` is lost: what it played starts again elsewhere, as long as it isn't what kills one after another.

        Raises:
            ErrorBudgetExceeded: too many episodes have failed.
        """
        self._take_in(self.scheduler.remove_worker(worker))

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
                results = [pending.results[request.id] for request in pending.requests]
                group = self.arena.credit_group(pending.name, results)
                self._count(results)
                credited.append(CreditedGroup(pending.batch, group, results, self.state()))
            elif self._max_staleness == 0:
                break
        return credited

    # Evaluation

    def draw_evaluation(self) -> None:
        """Choose what evaluations play, if there are any: before training changes a store, so that it is the same
        each time.

        Raises:
            ConfigError, UnknownNameError: there is nothing to play, or nothing known.
        """
        if self._eval_every:
            self._eval_requests = eval_requests(self.arena, self._eval_episodes, greedy=self._eval_greedy)

    def evaluate(self) -> None:
        """Play the evaluation with the policy as it is; ``take_evaluation`` has it in the end."""
        self._evaluation = EvaluationInFlight(self.version, self._eval_requests)
        self.scheduler.submit(self._eval_requests)

    def take_evaluation(self) -> Evaluation | None:
        """The evaluation that was begun, once all of it was played."""
        played = self._evaluation
        if played is None or not played.complete:
            return None
        self._evaluation = None
        return score(self.arena, played.requests, played.in_order(), played.version)

    # What a run keeps

    def state(self) -> bytes:
        """Everything but the results of groups that aren't complete; those are played again."""
        return encode_state(
            CoordinatorState(
                arena=self.arena.state_dict(),
                admitted=self._admitted,
                batches=self._batches,
                finished=self._finished,  # what is played again is counted again
                failed=self._failed,
                extra=self._extra,
                pending=[pending.encoded for pending in self._pending.values()],
                episodes=sorted(self.arena.episodes),
            )
        )

    def restore(self, content: bytes) -> None:
        """Go on from what ``state`` gave, before anything was admitted.

        Requests that were in flight are sent again, with the ids they had, at the version they had waited for.

        Raises:
            ConfigError: the arena, or a request, held something that could not be kept; or it was another arena.
        """
        state, pending_groups = decode_state(content)
        if unknown := set(state.episodes) - self.arena.episodes.keys():
            raise ConfigError(
                f"the run can't be resumed: its task has episodes of type {', '.join(sorted(unknown))}, and "
                f"{type(self.arena).__name__} knows none; go on with the task it began with"
            )
        self.arena.load_state_dict(state.arena)
        self._admitted, self._batches = state.admitted, state.batches
        for version, batches in state.extra.items():
            self.extend(version, batches)
        self.budget.finished, self.budget.failed = state.finished, state.failed
        self._finished, self._failed = state.finished, state.failed
        for kept in pending_groups:
            group = _PendingGroup(kept.name, kept.batch, kept.admitted_at, list(kept.requests))
            self._pend(group)
            self._restored.append(group)

    # How

    def _take_in(self, rollouts: Sequence[Rollout]) -> None:
        """Count what has ended, and sort in what is whole."""
        for rollout in rollouts:
            if not is_of_evaluation(rollout.id):
                self.budget.count(rollout)
        for result in self.scheduler.take_finished():
            self._results_beside(result.rollout.id)[result.rollout.id] = result

    def _count(self, results: Sequence[GenerateResult]) -> None:
        rollouts = [rollout for tree in results for rollout in tree.all_rollouts()]
        self._finished += len(rollouts)
        self._failed += sum(rollout.error is not None for rollout in rollouts)

    def _results_beside(self, request_id: str) -> dict[str, GenerateResult]:
        """Where the result of a root request belongs."""
        if self._evaluation is not None and is_of_evaluation(request_id):
            return self._evaluation.results
        return self._pending[self._group_of.pop(request_id)].results

    @property
    def _total(self) -> int:
        return (self._num_steps + sum(self._extra.values())) * self._batch_size

    def _limit(self) -> int:
        """How many roots may be admitted in all, now."""
        extra = sum(batches for version, batches in self._extra.items() if version <= self.version)
        return min((self._max_staleness + self.version + 1 + extra) * self._batch_size, self._total)

    def _admit(self) -> None:
        limit = self._limit()
        while self._restored and self._restored[0].admitted_at < limit:
            self._submit(self._restored.pop(0))
        while self._admitted < limit:
            groups: dict[str, _PendingGroup] = {}
            requests = self.arena.next_batch()
            for request in requests:
                name = group_name(self._batches, request.group)
                group = groups.setdefault(name, _PendingGroup(name, self._batches, self._admitted))
                group.requests.append(self.arena.resolve_artifact(request))
            self._admitted += len(requests)
            self._batches += 1
            for group in groups.values():
                self._pend(group)
                self._submit(group)

    def _pend(self, group: _PendingGroup) -> None:
        group.encoded = encode_pending(group.name, group.batch, group.admitted_at, group.requests)
        self._pending[group.name] = group

    def _submit(self, group: _PendingGroup) -> None:
        self._group_of.update({request.id: group.name for request in group.requests})
        self.scheduler.submit(group.requests)
