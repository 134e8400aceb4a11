"""Every task that `selfplay train` knows, for two steps, in one process, on a made-up model."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import random
from collections.abc import Sequence
from pathlib import Path
from typing import get_type_hints

import pytest

from selfplay_ray.arena import Arena
from selfplay_ray.config import RunConfig
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.jobs.by_name import tasks, training_job
from selfplay_ray.runtime import LocalRuntime
from selfplay_ray.scheduling.coordinator_state import (
    CoordinatorState,
    decode_state,
    encode_pending,
    encode_state,
)
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.training.loop import simple_training_loop
from selfplay_ray.training.trainer import Trainer, TrainerSettings
from selfplay_ray.types import Message

SMALLER: dict[str, dict[str, object]] = {
    "debate": {"batch_size": 4},
    "elo_arena": {"batch_size": 1},
    "negotiation": {"batch_size": 4},
    "proposer_solver": {"batch_size": 2},
    "refine_loop": {"batch_size": 8},
    "reverse_word": {"batch_size": 8},
    "self_distillation": {"batch_size": 8},
    "tournament": {"batch_size": 2},
}
"""What tasks take less time with."""

EXTRAS = {"verifiers": "verifiers.v1"}
"""What tasks need beside the project itself."""


def verdict(messages: Sequence[Message]) -> str:
    """One that can be read, whatever it is about; a made-up model's can't."""
    asked = messages[-1]["content"]
    return random.Random(asked).choice("AB" if asked.endswith("A, B or tie.") else "0123456789")


def made(task: str, **changes: object) -> tuple[Arena, RunConfig]:
    """The task's arena, and what it is configured with."""
    if task in EXTRAS:
        pytest.importorskip(EXTRAS[task])
    job = training_job(task)
    config = get_type_hints(job.make_arena)["config"](**SMALLER.get(task, {}), **changes)
    arena = job.make_arena(config)
    arena.configure(config)
    return arena, config


@pytest.mark.parametrize("task", tasks())
def test_a_task_can_be_resumed(task: str) -> None:
    """What it asks for and what it keeps come back from the journal as they were."""
    arena, _ = made(task)
    requests, kept = arena.next_batch(), arena.state_dict()
    state = CoordinatorState(
        arena=kept,
        admitted=0,
        batches=0,
        finished=0,
        failed=0,
        extra={},
        pending=[encode_pending("group", 0, 0, requests)],
    )
    decoded, (pending,) = decode_state(encode_state(state))
    assert list(pending.requests) == requests
    arena.load_state_dict(decoded.arena)
    assert arena.state_dict() == kept


@pytest.mark.parametrize("task", tasks())
async def test_a_task_takes_two_steps(task: str, tiny: Path) -> None:
    arena, config = made(task, model_path=str(tiny), num_steps=2, lora_rank=2)
    settings = TrainerSettings.from_config(config)
    engine = Engine(tiny, lora=settings.lora, max_batch_size=config.concurrency)
    try:
        client = EngineClient.for_engine(engine, config.max_tokens)
        arena.bind(LocalRuntime(arena, client, MockInferenceClient(verdict)))
        steps = await simple_training_loop(arena, Trainer(tiny, settings), 2, min_trainable=0)
    finally:
        engine.close()
    assert [step.step for step in steps] == [1, 2]
    for step in steps:
        assert step.failed == 0
        assert step.finished >= config.batch_size
        assert step.rewards or step.values["credit/unscored"]  # made-up models agree on nothing
