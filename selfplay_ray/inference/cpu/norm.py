"""The norm of Llama's layers."""

from __future__ import annotations

import numpy as np

RMSNorm = tuple[np.ndarray, float]
"""Weight and ε."""


def normed(x: np.ndarray, norm: RMSNorm, out: np.ndarray | None = None) -> np.ndarray:
    """x / √(mean x² + ε) · weight over the last axis."""
    weight, epsilon = norm
    mean = np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1])
    normed: np.ndarray = np.multiply(x, (1 / np.sqrt(mean + np.float32(epsilon)))[..., None], out=out)
    normed *= weight
    return normed
