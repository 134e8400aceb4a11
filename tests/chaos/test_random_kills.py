"""``kill -9`` of somebody, chosen by chance, again and again: the run ends by itself, and every group was trained once.

``CHAOS_SEED`` chooses who is killed when; the long form prints how it went.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import accounts
import pytest
import spoken
from length import LONG
from processes import end, named
from ray import cloudpickle

from selfplay_ray.actors.run import train
from selfplay_ray.actors.spec import ClusterSpec
from selfplay_ray.arena import Arena
from selfplay_ray.episode import EpisodeState
from selfplay_ray.runlog.folder import RunLog

pytestmark = pytest.mark.usefixtures("ray_cluster")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors don't find the modules of tests

KINDS = (
    "RolloutWorker",
    "InferenceEngine",
    "JudgePool",
    "UnforgettingQueue",
    "WeightBroadcaster",
    "Learner",
    "ArenaActor",
)
KILLS, NUM_STEPS = (30, 60) if LONG else (len(KINDS), 14)
LAST_KILL = NUM_STEPS - 4
"""After how many steps it comes at the earliest."""
SEED = int(os.environ.get("CHAOS_SEED", "0"))


class Unended(spoken.Speak):
    """Something is left to be played until the last was killed."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        while accounts.steps_taken(self._log) >= LAST_KILL and not all_killed(self._log).exists():
            await asyncio.sleep(0.1)
        return await super().rollout(arena, artifact, state)


class UnendedArena(spoken.JudgedArena):
    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self.add_episode("speak", Unended(log))


def all_killed(log: RunLog) -> Path:
    """There when nobody is left to be killed."""
    return log.folder.with_suffix(".killed")


@dataclass
class Killer:
    """Kills a process of the run, each kind in its turn, some time after every second step."""

    log: RunLog
    chance: random.Random
    kills: list[tuple[int, str]] = field(default_factory=list)  # after how many steps, who
    over: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        turns = [kind for _ in range(0, KILLS, len(KINDS)) for kind in self.chance.sample(KINDS, len(KINDS))]
        for number, kind in enumerate(turns[:KILLS]):
            while accounts.steps_taken(self.log) < 1 + number * (LAST_KILL - 1) // (KILLS - 1):
                if self.over.wait(0.1):
                    return
            self.over.wait(self.chance.uniform(0, 2))
            while not (there := named(kind)):  # still being replaced
                if self.over.wait(0.1):
                    return
            end(self.chance.choice(sorted(there)))
            self.kills.append((accounts.steps_taken(self.log), kind))
        all_killed(self.log).touch()


@pytest.mark.timeout(3000)
def test_whoever_is_killed_the_run_ends_and_nothing_is_lost_or_trained_twice(tmp_path: Path, tiny: Path):
    config = spoken.config(
        tmp_path / "killed",
        tiny,
        num_steps=NUM_STEPS,
        engines=2 if LONG else 1,
        checkpoint_every=5,
        step_timeout=600,
    )
    log = RunLog(tmp_path / "killed")
    killer = Killer(log, random.Random(SEED))
    thread = threading.Thread(target=killer.work, daemon=True)
    thread.start()
    started = time.monotonic()
    try:
        spec = ClusterSpec.from_config(config)
        queue = replace(spec.queue, cls=accounts.UnforgettingQueue)
        history = train(UnendedArena(log), config, spec=replace(spec, queue=queue))
    finally:
        killer.over.set()
        thread.join()
    print(f"{len(killer.kills)} kills in {time.monotonic() - started:.0f} s: {killer.kills}")
    assert Counter(kind for _, kind in killer.kills).total() == KILLS

    assert [metrics.step for metrics in history] == list(range(1, NUM_STEPS + 1))
    accounts.assert_nothing_was_lost_or_trained_twice(log, config, spoken.GROUP, spoken.CHILDREN)
