from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["arena", "replay_queue", "rollout_worker", "weight_broadcaster"])
def test_actors_without_a_model_load_no_mlx(module: str):
    script = (
        f"import sys, selfplay_ray.actors.{module}; print([m for m in ('mlx', 'mlx_lm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
