"""What a rollout worker does with an arena that doesn't answer, and with what can't be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from selfplay_ray.actors import rollout_worker
from selfplay_ray.actors.protocols import ActorContext
from selfplay_ray.actors.rollout_worker import RolloutWorker
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.scheduling.messages import Orders, Report


class Odd(Exception):
    def __str__(self) -> str:
        raise AttributeError("it can't even be told")


class ScriptedArena:
    """The handle of an arena that answers reports with one of ``answers`` after the other, or raises it."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.reports: list[Report] = []
        self.failures: list[str] = []

    @property
    def report(self) -> ScriptedArena:
        return self

    @property
    def fail(self) -> ScriptedArena:
        return self

    def remote(self, *arguments: Any) -> Any:
        if len(arguments) == 1:
            self.failures.append(arguments[0])
            return None
        if isinstance(self.answers[0], Odd):
            raise self.answers.pop(0)
        self.reports.append(arguments[1])
        return self._answer(self.answers.pop(0))

    async def _answer(self, answer: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RolloutWorker:
    monkeypatch.setattr(rollout_worker, "RETRY_SECONDS", 0.0)
    return RolloutWorker(ActorContext("worker-0", RunConfig(), Arena(), tmp_path))


async def test_a_report_whose_answer_was_lost_is_sent_again(worker: RolloutWorker):
    orders, report = Orders(1), Report()
    arena = ScriptedArena(ActorUnavailableError("away", None), ActorUnavailableError("away", None), orders)
    assert await worker._report(arena, report) is orders
    assert arena.reports == [report] * 3


async def test_an_arena_that_is_gone_for_good_is_asked_nothing_more(worker: RolloutWorker):
    arena = ScriptedArena(ActorDiedError(), Orders(1))
    assert await worker._report(arena, Report()) is None
    assert len(arena.reports) == 1


async def test_what_cannot_even_be_told_is_told_by_its_type(worker: RolloutWorker):
    with pytest.raises(TypeError, match="Odd"):
        await worker._report(ScriptedArena(Odd()), Report())


async def test_an_answer_that_cannot_be_read_ends_the_run(worker: RolloutWorker):
    arena = ScriptedArena(AttributeError("no longer there"))
    assert await worker._report(arena, Report()) is None
    (reason,) = arena.failures
    assert "a report of worker-0 could not be read by the arena, or not be answered: AttributeError" in reason
