"""Rows as compiled functions read them.

N rows of a width are [P, width, lanes]: row r is lane r % lanes of panel r // lanes. Lanes are LANES, a vector of the
machine, or for the fewest rows as many as these are. In lanes without a row there are zeros.
"""

from __future__ import annotations

import numpy as np

from selfplay_ray.inference.cpu.tiles import NARROW
from selfplay_ray.inference.cpu.vectors import LANES


def in_panels(rows: np.ndarray) -> np.ndarray:
    """A copy of rows [N, width]."""
    count, width = rows.shape
    lanes = count if count <= NARROW else LANES
    padded = np.zeros((-(-count // lanes) * lanes, width), rows.dtype)
    padded[:count] = rows
    return np.ascontiguousarray(padded.reshape(-1, lanes, width).swapaxes(1, 2))
