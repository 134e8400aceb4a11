"""The task in fifty lines: its rules by hand, two steps of it in one process, and as the script that it is."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from processes import REPOSITORY

from selfplay_ray.config import RunConfig
from selfplay_ray.inference.client import EngineClient
from selfplay_ray.inference.engine import Engine
from selfplay_ray.jobs.train_bidding import make_arena
from selfplay_ray.runtime import LocalRuntime
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.training.loop import simple_training_loop
from selfplay_ray.training.trainer import Trainer, TrainerSettings

SCRIPT = REPOSITORY / "jobs" / "train_bidding.py"


@pytest.mark.parametrize(
    ("scripted_bids", "ann", "ben"),
    [
        # Prizes of 5, 3 and 2; each pair of bids is Ann's and Ben's.
        (("3", "2", "4", "5", "1", "0"), 0.4, -0.4),  # Ann 5 + 2, Ben 3: (7 - 3) / 10
        (("3", "3", "2", "2", "1", "1"), 0.0, 0.0),  # nobody gets anything
        (("I bid 9 coins", "8", "2", "1", "1", "2"), 0.0 - 0.5 / 3, 0.0),  # Ann has 1 left: her 2 is void
        (("lots", "1", "0", "10", "0", "0"), -0.5 - 0.5 / 3, 0.5 - 0.5 / 3),  # of Ben's 10 there are 9
    ],
)
async def test_the_higher_bid_wins_and_pays(scripted_bids: tuple[str, ...], ann: float, ben: float):
    bids = iter(scripted_bids)
    arena = make_arena(RunConfig())
    arena.bind(LocalRuntime(arena, MockInferenceClient(lambda messages: next(bids))))
    rollout = (await arena.run_episode("bidding", [5, 3, 2])).rollout
    assert rollout.error is None, rollout.error
    assert rollout.rewards == pytest.approx({"Ann": ann, "Ben": ben})
    assert rollout.metrics["ahead/Ann"] + rollout.metrics["ahead/Ben"] == 0


async def test_bids_are_sealed_and_the_budget_goes_down():
    bids = iter(["3", "2", "4", "5", "1", "0"])
    arena = make_arena(RunConfig())
    arena.bind(LocalRuntime(arena, MockInferenceClient(lambda messages: next(bids))))
    steps = (await arena.run_episode("bidding", [5, 3, 2])).rollout.steps
    asked = [(step.role_id, step.prompt_text) for step in steps]
    assert asked[2] == ("Ann", "A prize is worth 3. You have 7 coins. Answer with your bid, one number.")
    assert asked[3] == ("Ben", "A prize is worth 3. You have 10 coins. Answer with your bid, one number.")


async def test_it_trains_in_one_process(tiny: Path):
    settings = TrainerSettings.from_config(RunConfig(lora_rank=2))
    engine = Engine(tiny, lora=settings.lora)
    try:
        arena = make_arena(RunConfig(batch_size=8))
        arena.bind(LocalRuntime(arena, EngineClient.for_engine(engine)))
        steps = await simple_training_loop(arena, Trainer(tiny, settings), 2, min_trainable=0)
    finally:
        engine.close()
    assert [step.rewards["Ann"].count for step in steps] == [8, 8]
    assert [(step.finished, step.failed) for step in steps] == [(8, 0), (8, 0)]


def test_it_is_a_script_of_fifty_lines(tmp_path: Path, environment: dict[str, str]):
    code = SCRIPT.read_text().split('"""', 2)[2]  # after what it is about
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 50
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert tomllib.loads(done.stdout)["batch_size"] == 8
