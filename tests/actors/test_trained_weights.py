"""Runs that train all weights, or begin with an adapter that is there: what they leave, and how they go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import games
import mlx_lm
import numpy as np
import pytest

from selfplay_ray import cli
from selfplay_ray.actors.run import train
from selfplay_ray.config import RunConfig
from selfplay_ray.lora import LoRASettings, arrays_by_path, load_adapter, save_adapter
from selfplay_ray.runlog.folder import RunLog
from selfplay_ray.training.checkpoint_folder import checkpoint_path
from selfplay_ray.training.trainer import Trainer, TrainerSettings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_run_of_all_weights_leaves_a_model_that_can_be_exported(
    short_run: Callable[..., RunConfig], tmp_path: Path
):
    history = train(games.SpeakArena(artifacts=[1]), short_run(lora_rank=0, lr=1e-4, max_staleness=0))
    assert max(step.flat()["train/ratio_lag0"] for step in history) < 1e-4
    log = RunLog(tmp_path / "run")
    assert list(log.adapters_dir.iterdir()) == []  # or every step would leave a whole model
    saved = load_adapter(checkpoint_path(log.checkpoints_dir, 2) / "adapter.safetensors")
    assert (saved.settings.rank, saved.version) == (0, 2)
    assert cli.main(["export", str(log.folder), str(tmp_path / "out")]) == 0
    exported = arrays_by_path(mlx_lm.load(str(tmp_path / "out"))[0].parameters())
    assert exported.keys() == saved.weights.keys()
    assert all(np.array_equal(np.array(exported[name]), value) for name, value in saved.weights.items())


def test_the_adapter_a_run_began_with_may_be_gone_when_it_goes_on(
    short_run: Callable[..., RunConfig], tiny: Path, tmp_path: Path
):
    path = tmp_path / "given.safetensors"
    given = Trainer(tiny, TrainerSettings(lora=LoRASettings(rank=2), seed=5)).adapter()
    save_adapter(path, given, LoRASettings(rank=2), version=7)
    config = short_run(num_steps=1, adapter=path)
    train(games.SpeakArena(artifacts=[1]), config)
    path.unlink()
    more = config.model_copy(update={"num_steps": 2, "resume": tmp_path / "run"})
    assert [step.step for step in train(games.SpeakArena(artifacts=[1]), more)] == [1, 2]
    name = "model.layers.0.self_attn.q_proj.lora_a"
    last = load_adapter(RunLog(tmp_path / "run").adapter_path(2)).weights[name]
    assert np.abs(last - given[name]).max() < 0.01 < np.abs(given[name]).max()  # two small steps away from it
