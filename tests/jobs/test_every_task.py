"""Every task that `selfplay train` knows, for two steps, in one process, on a made-up model."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from pathlib import Path
from typing import get_type_hints

import pytest

from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.jobs.by_name import tasks, training_job
from selfplay_ray.runtime import LocalRuntime
from selfplay_ray.training.loop import simple_training_loop
from selfplay_ray.training.trainer import Trainer, TrainerSettings

SMALLER: dict[str, dict[str, object]] = {}
"""Flags of tasks whose own would take long."""

EXTRAS = {"verifiers": "verifiers.v1"}
"""What tasks need that isn't among what the tests need."""


@pytest.mark.parametrize("task", tasks())
async def test_a_task_takes_two_steps(task: str, tiny: Path) -> None:
    if task in EXTRAS:
        pytest.importorskip(EXTRAS[task])
    job = training_job(task)
    config_type = get_type_hints(job.make_arena)["config"]
    config = config_type(model_path=str(tiny), num_steps=2, lora_rank=2, **SMALLER.get(task, {}))
    arena = job.make_arena(config)
    arena.configure(config)
    settings = TrainerSettings.from_config(config)
    engine = Engine(tiny, lora=settings.lora, max_batch_size=config.concurrency)
    try:
        client = EngineClient.for_engine(engine, config.max_tokens)
        arena.bind(LocalRuntime(arena, client))
        steps = await simple_training_loop(arena, Trainer(tiny, settings), 2, min_trainable=0)
    finally:
        engine.close()
    assert [step.step for step in steps] == [1, 2]
    for step in steps:
        assert step.failed == 0
        assert step.finished >= config.batch_size
        assert step.rewards
