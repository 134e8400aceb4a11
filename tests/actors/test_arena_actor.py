"""The arena's actor as a plain class: whatever can't be played ends the run, and its status says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import games
import pytest

from selfplay_ray.actors.arena import ArenaActor
from selfplay_ray.actors.protocols import ActorContext, Peers
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.types import EpisodeRequest

Batch = Callable[[int], Sequence[EpisodeRequest]]


class Playing(Arena):
    """Plays what ``batch`` makes of the number of batches so far."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch
        self.add_episode("speak", games.Speak())

    def get_batch(self) -> Sequence[EpisodeRequest]:
        return self.batch(self._batches)


class Fresh:
    """The handle of a queue in which nothing was put, or of a broadcaster without weights: both have None to say."""

    def __getattr__(self, method: str) -> Fresh:
        return self

    async def remote(self) -> None:
        return None


async def started(arena: Arena, folder: Path) -> ArenaActor:
    actor = ArenaActor(ActorContext("arena-0", RunConfig(batch_size=2, num_steps=3), arena, folder))
    await actor.connect(Peers(None, Fresh(), None, Fresh(), {}, [], []))
    await actor.start()
    return actor


async def test_with_staleness_of_one_two_batches_are_in_flight_at_once(tmp_path: Path):
    actor = await started(Playing(lambda number: [EpisodeRequest("speak", 0)] * 2), tmp_path)
    status = await actor.status()
    assert (status.in_flight, status.failure, status.done) == (4, None, False)
    assert status.unfinished[0] == "b000000.0 (speak): queued"
    await actor.advance(1)
    assert (await actor.status()).in_flight == 6
    await actor.advance(2)  # three steps need no fourth batch
    assert (await actor.status()).in_flight == 6


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (lambda number: [], "Playing.get_batch() returned no requests; a batch of 0 trains nothing"),
        (lambda number: [EpisodeRequest("speak")], "returned 1 requests, but batch_size is 2"),
        (lambda number: [EpisodeRequest("spaek")] * 2, "unknown episode type 'spaek'; known: speak"),
    ],
)
async def test_a_batch_that_does_not_fit_is_the_failure(batch: Batch, sentence: str, tmp_path: Path):
    status = await (await started(Playing(batch), tmp_path)).status()
    assert status.failure is not None
    assert sentence in str(status.failure)
    assert status.in_flight == 0


async def test_a_batch_that_is_never_made_is_the_failure(tmp_path: Path):
    class Forgetful(Arena):
        pass

    status = await (await started(Forgetful(), tmp_path)).status()
    assert str(status.failure) == "Forgetful must override get_batch() to say what is played next"


async def test_a_batch_that_raises_is_a_bug_and_the_failure_all_the_same(tmp_path: Path):
    """Nobody looks at what a worker's report raises; what status tells ends the run."""
    actor = await started(Playing(lambda number: [EpisodeRequest("speak", 1 // (2 - number))] * 2), tmp_path)
    assert (await actor.status()).failure is None
    with pytest.raises(ZeroDivisionError):
        await actor.advance(1)
    failure = str((await actor.status()).failure)
    assert "return self.batch(self._batches)" in failure  # its traceback, for whoever wrote it
    assert failure.endswith("ZeroDivisionError: integer division or modulo by zero")
