"""A tiny model, and configurations of short runs of it."""

from __future__ import annotations

import selfplay_ray  # noqa: F401  OpenBLAS goes in front before anything imports mlx

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import Any

import games
import pytest
from ray import cloudpickle

from selfplay_ray.config import RunConfig

cloudpickle.register_pickle_by_value(games)  # the actors' processes don't find the modules of tests


@pytest.fixture
def short_run(tmp_path: Path, tiny: Path) -> Callable[..., RunConfig]:
    """The configuration of a short run in a folder of the test's own."""

    def make(**settings: Any) -> RunConfig:
        short = {
            "num_steps": 2,
            "batch_size": 2,
            "lora_rank": 2,
            "max_tokens": 6,
            "step_timeout": 120,
            "min_trainable": 0,
        }
        place = {"name": "run", "output_dir": tmp_path, "model_path": str(tiny)}
        return RunConfig(**{**place, **short, **settings})

    return make
