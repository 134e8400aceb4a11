"""How long until a run is as fast again as it was before somebody was killed: ``python tests/chaos/recovery.py``.

Seconds from ``kill -9`` until episodes finish, over the five seconds that follow, at 90 % of the pace of the twenty
seconds before; the median of some kills of each kind, on a tiny model.
"""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

import spoken
from processes import end, named
from ray import cloudpickle
from tiny_model import write_tiny_model

from selfplay_ray.actors.cluster import Cluster, ray_cluster
from selfplay_ray.actors.faults import get
from selfplay_ray.errors import ActorLostError, UnavailableError
from selfplay_ray.runlog.folder import RunLog

KINDS = (
    "RolloutWorker",
    "InferenceEngine",
    "Learner",
    "ArenaActor",
    "ReplayQueue",
    "WeightBroadcaster",
    "JudgePool",
)
KILLS = 3
BEFORE, AFTER, SHARE, LIMIT = 20.0, 5.0, 0.9, 120.0
EVERY = 0.25


class Pace:
    """How many episodes were finished when; the arena's count begins anew where it is replaced."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.at: list[tuple[float, int]] = [(time.monotonic(), 0)]
        self.last = 0
        self.over = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        while not self.over.wait(EVERY):
            finished = self.cluster.status().finished
            self.at.append((time.monotonic(), self.at[-1][1] + max(0, finished - self.last)))
            self.last = finished

    def over_span(self, start: float, stop: float) -> float:
        """Episodes a second."""
        counts = [count for moment, count in self.at if start <= moment <= stop]
        return (counts[-1] - counts[0]) / (stop - start) if counts else 0.0


def seconds_to_recover(pace: Pace, kind: str) -> float:
    time.sleep(BEFORE)
    now = time.monotonic()
    before = pace.over_span(now - BEFORE, now)
    end(random.choice(sorted(named(kind))))
    killed = time.monotonic()
    while (start := time.monotonic() - AFTER) - killed < LIMIT:
        if start > killed and pace.over_span(start, start + AFTER) >= SHARE * before:
            return start - killed
        time.sleep(EVERY)
    return float("inf")


def take_steps(cluster: Cluster, over: threading.Event) -> None:
    taken = 0
    while not over.is_set():
        try:
            taken = max(taken, get(cluster.step(taken)).step)
        except (ActorLostError, UnavailableError):
            time.sleep(EVERY)


def main() -> None:
    cloudpickle.register_pickle_by_value(spoken)
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        config = spoken.config(
            Path(folder) / "recovery",
            write_tiny_model(Path(folder) / "tiny"),
            num_steps=100_000,
            batch_size=4 * spoken.GROUP,
            engines=2,
            judges=2,
            checkpoint_every=10,
        )
        log = RunLog.create(config.output_dir, "recovery", "recovery")
        with Cluster(spoken.JudgedArena(), config, log.folder) as cluster:
            pace = Pace(cluster)
            steps = threading.Thread(target=take_steps, args=(cluster, pace.over), daemon=True)
            steps.start()
            time.sleep(BEFORE)
            for kind in KINDS:
                seconds = [seconds_to_recover(pace, kind) for _ in range(KILLS)]
                each = ", ".join(f"{one:.1f}" for one in seconds)
                print(f"{kind:18} {statistics.median(seconds):5.1f} s  ({each})", flush=True)
            pace.over.set()
            steps.join()


if __name__ == "__main__":
    main()
