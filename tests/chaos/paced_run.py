"""A run on the cluster that RAY_ADDRESS names, with workers, engines and a judge on hosts other than the driver's:
``paced_run.py FOLDER MODEL STEPS``.

How many of its batches may be played stands in the file ``FOLDER.pace``, so that it isn't over before whoever disturbs
it is.
"""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import accounts
import spoken
from ray import cloudpickle

from selfplay_ray.actors.run import train
from selfplay_ray.actors.spec import ActorSpec, ClusterSpec
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import EpisodeState
from selfplay_ray.types import EpisodeRequest

WORKERS, ENGINES, JUDGES = 2, 2, 1
CPUS = 2
"""Of a host other than the driver's; one has room for all."""
LOOK_SECONDS = 0.1


class Paced(spoken.Speak):
    """A tree that is played when its batch may be."""

    def __init__(self, pace: Path) -> None:
        self._pace = pace

    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        while allowed(self._pace) < artifact:
            await asyncio.sleep(LOOK_SECONDS)
        return await super().rollout(arena, 1, state)


class PacedArena(spoken.JudgedArena):
    def __init__(self, pace: Path) -> None:
        super().__init__()
        self.add_episode("paced", Paced(pace))
        self._drawn = 0

    def get_batch(self) -> Sequence[EpisodeRequest]:
        self._drawn += 1
        return [replace(one, episode_type="paced", artifact=self._drawn) for one in super().get_batch()]


class Spread(ActorSpec):
    """Those of a place are spread over the hosts, as far as these have CPUs; the driver's has none."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "scheduling_strategy": "SPREAD"}


def pace(folder: Path) -> Path:
    return folder.with_suffix(".pace")


def allowed(file: Path) -> int:
    """How many batches may be played."""
    return int(file.read_text())


def allow(file: Path, batches: int) -> None:
    unfinished = file.with_suffix(".new")
    unfinished.write_text(str(batches))
    unfinished.replace(file)


def configuration(folder: Path, model: Path, num_steps: int) -> RunConfig:
    return spoken.config(
        folder,
        model,
        num_steps=num_steps,
        engines=ENGINES,
        rollout_workers=WORKERS,
        judges=JUDGES,
        checkpoint_every=5,
        step_timeout=240,
    )


def main() -> None:
    folder, model = map(Path, sys.argv[1:3])
    config = configuration(folder, model, int(sys.argv[3]))
    spec = ClusterSpec.from_config(config)
    share = CPUS / (WORKERS + ENGINES + JUDGES)
    places = {
        place: spread(replace(getattr(spec, place), num_cpus=share))
        for place in ("worker", "engine", "judge")
    }
    queue = replace(spec.queue, cls=accounts.UnforgettingQueue)
    train(PacedArena(pace(folder)), config, spec=replace(spec, queue=queue, **places))


def spread(spec: ActorSpec) -> Spread:
    return Spread(**{field.name: getattr(spec, field.name) for field in fields(spec)})


if __name__ == "__main__":
    for module in (sys.modules["__main__"], accounts, spoken):
        cloudpickle.register_pickle_by_value(module)
    main()
