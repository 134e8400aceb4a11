"""The exponential function, in steps that a compiler makes vectors of."""

from __future__ import annotations

import numpy as np

from selfplay_ray.inference.cpu.compiled import inlined
from selfplay_ray.inference.cpu.vectors import multiply_add

LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST = np.float32(-87.3)
"""What e to the power of is still a normal number."""


@inlined
def exp(x: np.float32) -> np.float32:
    """e to the power of x ≤ 0, within two ulp: 2ⁿ times a polynomial (Cephes' expf)."""
    x = LEAST if x < LEAST else x
    n = np.floor(multiply_add(x, LOG2_E, np.float32(0.5)))
    r = multiply_add(n, -LN2_LOW, multiply_add(n, -LN2_HIGH, x))
    y = multiply_add(np.float32(1.9875691500e-4), r, np.float32(1.3981999507e-3))
    y = multiply_add(y, r, np.float32(8.3334519073e-3))
    y = multiply_add(y, r, np.float32(4.1665795894e-2))
    y = multiply_add(y, r, np.float32(1.6666665459e-1))
    y = multiply_add(y, r, np.float32(5.0000001201e-1))
    y = multiply_add(y, r * r, r) + np.float32(1)
    power: np.float32 = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    product: np.float32 = y * power
    return product
