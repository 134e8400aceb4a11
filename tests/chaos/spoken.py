"""A small arena to be disturbed: trees of three, judged, in groups of four."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.episode import Episode, EpisodeState
from selfplay_ray.rubric import Rubric
from selfplay_ray.types import EpisodeRequest, Role, Rollout

GROUP, CHILDREN = 4, 2


def config(folder: Path, model: Path, **settings: Any) -> RunConfig:
    """Of a small run in ``folder``, with two workers and a judge unless ``settings`` say otherwise."""
    usual = {
        "name": folder.name,
        "output_dir": folder.parent,
        "model_path": str(model),
        "batch_size": 2 * GROUP,
        "lora_rank": 2,
        "max_tokens": 6,
        "min_trainable": 0,
        "max_staleness": 1,
        "rollout_workers": 2,
        "judges": 1,
    }
    return RunConfig(**usual | settings)


async def judged(rollout: Rollout, arena: Arena) -> dict[str, float]:
    """Something that differs from sample to sample, whatever random models say."""
    verdict = await arena.call_model(f"How good is {rollout.steps[0].completion_text!r}?", max_tokens=3)
    said = (*rollout.steps[0].completion_token_ids, *verdict.completion_token_ids)
    return {"Speaker": sum(said) % 11 / 10}


class Speak(Episode):
    """One role says something, after children that do so as well if its artifact says so."""

    rubric = Rubric([judged])

    async def rollout(self, arena: Arena, artifact: int, state: EpisodeState) -> EpisodeState:
        if artifact:
            await arena.generate_rollouts([EpisodeRequest("speak", artifact - 1)] * CHILDREN)
        await self.call_model("Speaker", f"Say something about {artifact}.", arena)
        return state


class JudgedArena(Arena):
    def __init__(self) -> None:
        super().__init__()
        self.add_role(Role("Speaker", max_tokens=6))
        self.add_episode("speak", Speak())

    def get_batch(self) -> Sequence[EpisodeRequest]:
        return [EpisodeRequest("speak", 1, group=str(index // GROUP)) for index in range(self.batch_size)]
