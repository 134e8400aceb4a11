"""Adapter weights that have an effect: with B at zero, as training begins, much of the work would be on zeros."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def noisy_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Normal, of standard deviation 0.02, float32."""
    rng = np.random.default_rng(seed)
    return {name: (0.02 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
