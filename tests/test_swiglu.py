"""The activation is the one it stands for, in value and in gradient, at both ends of float32 too."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load

from selfplay_ray.models import load_model
from selfplay_ray.swiglu import SwiGLU, silu

ENDS = mx.array([-1e10, -200.0, -88.5, -20.0, -1.0, 0.0, 1e-20, 1.0, 30.0, 200.0, 1e10])


def test_silu_is_mlx_own() -> None:
    values = mx.concatenate([ENDS, mx.random.normal((1000,), key=mx.random.key(0)) * 10])
    assert mx.allclose(silu(values), nn.silu(values), rtol=2e-6, atol=1e-7)


def test_its_gradient_is_a_number_everywhere() -> None:
    ours, theirs = (mx.vmap(mx.grad(function))(ENDS) for function in (silu, nn.silu))
    assert mx.allclose(ours, theirs, atol=1e-6)


def test_the_real_model_computes_what_it_did(smollm2: Path) -> None:
    tokens = mx.arange(100, 140)[None]
    ours, theirs = load_model(smollm2)[0], load(str(smollm2))[0]
    assert sum(isinstance(module, SwiGLU) for module in ours.modules()) == 30
    assert mx.abs(ours(tokens) - theirs(tokens)).max() < 1e-3
    assert mx.abs(ours(tokens) - theirs(tokens)).mean() < 2e-5
