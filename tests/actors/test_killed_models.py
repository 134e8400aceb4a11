"""An engine or a judge that is killed comes back, and the run ends as one in which nobody was."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import games
import numpy as np
import pytest
from ray import cloudpickle

from selfplay_ray.actors.inference_engine import InferenceEngine
from selfplay_ray.actors.judge_pool import JudgePool
from selfplay_ray.actors.protocols import ActorContext
from selfplay_ray.actors.run import train
from selfplay_ray.actors.spec import ClusterSpec
from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.inference.requests import Generation, GenerationRequest
from selfplay_ray.lora import load_adapter
from selfplay_ray.rubric import Rubric
from selfplay_ray.runlog.rollouts import read_rollouts
from selfplay_ray.types import Completion, ModelCall, Rollout

pytestmark = pytest.mark.usefixtures("ray_cluster")
cloudpickle.register_pickle_by_value(
    sys.modules[__name__]
)  # the actors' processes don't find the modules of tests

Config = Callable[..., RunConfig]


class Deaths:
    """Kills the process it is in at each of some calls, counted over all processes of the run."""

    def __init__(self, context: ActorContext, *at: int) -> None:
        self.calls, self.at = context.run_folder / f"calls-{context.name}", at

    def call(self) -> None:
        with self.calls.open("a") as file:
            file.write(".")
        if self.calls.stat().st_size in self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalEngine(InferenceEngine):
    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self.deaths = Deaths(context, 4, 9)

    async def generate(self, request: GenerationRequest) -> Generation:
        if self._has_weights:
            self.deaths.call()
        return await super().generate(request)


class MortalJudge(JudgePool):
    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self.deaths = Deaths(context, 3)

    async def complete(self, call: ModelCall) -> Completion:
        if self._client is not None:
            self.deaths.call()
        return await super().complete(call)


async def judged(rollout: Rollout, arena: Arena) -> dict[str, float]:
    verdict = await arena.call_model(f"How good is {rollout.steps[0].completion_text!r}?", max_tokens=3)
    return {"Speaker": sum(verdict.completion_token_ids) % 11 / 10}


class JudgedSpeak(games.Speak):
    rubric = Rubric([judged])


def adapters(folder: Path) -> dict[str, np.ndarray]:
    weights = {
        f"{path.name} {name}": array
        for path in sorted((folder / "adapters").iterdir())
        for name, array in load_adapter(path).weights.items()
    }
    assert weights
    return weights


def check_same(folder: Path, other: Path) -> None:
    """Both have said and learned the same, to the bit."""
    ours, theirs = adapters(folder), adapters(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    said = [
        [
            (row.tree.id, [step.text for step in row.tree.steps])
            for row in read_rollouts(run / "rollouts.jsonl")
        ]
        for run in (folder, other)
    ]
    assert said[0] == said[1]


def test_those_that_were_killed_come_back_and_nothing_else_changes(short_run: Config):
    config = short_run(num_steps=3, batch_size=4, max_staleness=0, judges=1)
    spec = ClusterSpec.from_config(config)
    mortals = {
        "engine": replace(spec.engine, cls=MortalEngine),
        "judge": replace(spec.judge, cls=MortalJudge),
    }
    task = games.SpeakArena(JudgedSpeak())
    steps = train(task, config, spec=replace(spec, **mortals))
    assert [metrics.step for metrics in steps] == [1, 2, 3]
    assert [metrics.failed for metrics in steps] == [0] * 3
    folder = config.output_dir / config.name
    assert (folder / "calls-engine-0").stat().st_size >= 12 + 2
    assert (folder / "calls-judge-0").stat().st_size >= 12 + 1
    plain = config.model_copy(update={"name": "undisturbed"})
    train(task, plain)
    check_same(folder, config.output_dir / "undisturbed")
