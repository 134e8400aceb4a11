"""SwiGLU as a CPU computes it fastest.

MLX's ``exp`` and ``sigmoid`` run value by value on the CPU, 13 ns each, and the activation alone is a seventh of a
decode step. Its ``power`` takes less than half as long.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

PLAIN = {"mlx_lm.models.llama", "mlx_lm.models.qwen2", "mlx_lm.models.qwen3"}
"""Where ``MLP`` is down(silu(gate(x)) · up(x)) and nothing else."""


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202, eq. 6) with the layers of ``mlp``."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return y


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x)."""
    # Past e^80 the sigmoid is 0 in float32; beyond e^88 the power would be infinite, and its gradient no number.
    return x / (1 + mx.power(math.e, mx.minimum(-x, 80.0)))


def replace_swiglu(model: nn.Module) -> None:
    """Put :class:`SwiGLU` in the place of mlx-lm's own, where it is the plain one."""
    ours = [
        (path, SwiGLU(module))
        for path, module in model.named_modules()
        if type(module).__name__ == "MLP" and type(module).__module__ in PLAIN
    ]
    model.update_modules(tree_unflatten(ours))
