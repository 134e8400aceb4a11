"""A linear layer's product with few rows, read once from where its weights lie.

OpenBLAS packs a matrix before it multiplies with it: with the few rows of a decode step that takes as long as the
product. Products below a certain size it computes from where the matrix lies, without packing, in the calling thread.
So a weight [out, in] is taken as many of 16 rows each, and the threads share these.
"""

from __future__ import annotations

import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.adapters import Adapted

BLOCK = 16
"""Columns of the output computed by one small product."""

SMALL = 1_000_000
"""The multiplications up to which OpenBLAS takes a product for small; beyond, it packs."""

SMALL_TRANSPOSED = 1_200
"""The results up to which it does so where the second matrix lies transposed, as weights do."""

Factors = tuple[np.ndarray, np.ndarray]


class Linear:
    """y = x Wᵀ + b of ``layer``, with the adapters its selection tells of."""

    def __init__(self, layer: nn.Module) -> None:
        self._adapted = layer if isinstance(layer, Adapted) else None
        linear = layer.linear if isinstance(layer, Adapted) else layer
        self._weight = np.asarray(linear.weight)  # the same memory
        self._bias = np.asarray(linear.bias) if "bias" in linear else None
        self.shape: tuple[int, int] = self._weight.shape
        self.width, self._inputs = self.shape
        whole = self.width // BLOCK * BLOCK
        self._blocks = self._weight[:whole].reshape(-1, BLOCK, self._inputs).swapaxes(1, 2)
        # What is left is made a whole block as well.
        self._rest = np.pad(self._weight[whole:], ((0, -self.width % BLOCK), (0, 0)))
        self._scale = np.float32(layer.scale if isinstance(layer, Adapted) else 0)
        self._selected: object = None
        self._factors: Factors | None = None
        self._own: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> None:
        """Compute what follows, of tokens that are of the ``rows`` [N], with the adapters selected now; MLX's arrays
        are read in this thread only."""
        if self._adapted is None:
            return
        if self._adapted.factors is not self._selected:
            self._selected = factors = self._adapted.factors
            self._factors = None if factors is None else (np.asarray(factors[0]), np.asarray(factors[1]))
        own = self._adapted.own
        self._own = None if own is None else np.asarray(own)[rows] > 0

    def is_small(self, rows: int) -> bool:
        """Whether a product with so many rows is computed without packing. A row's result is then the same to the
        last bit, whatever else is in the product and however its columns are shared; but for what adapters add."""
        return rows * BLOCK <= SMALL_TRANSPOSED and rows * BLOCK * self._inputs <= SMALL

    def part(self, x: np.ndarray, y: np.ndarray, columns: slice) -> None:
        """Compute ``columns`` of y [N, out] from x [N, in]; they begin between blocks, and end so or with y."""
        if len(x) == 1:  # for which NumPy takes a routine of its own, that sums in another order
            twice = np.empty((2, self.width), dtype=np.float32)
            self.part(np.repeat(x, 2, axis=0), twice, columns)
            y[:, columns] = twice[:1, columns]
            return
        if self.is_small(len(x)):
            self._unpacked(x, y, columns)
        else:
            np.matmul(x, self._weight[columns].T, out=y[:, columns])
        if self._bias is not None:
            y[:, columns] += self._bias[columns]
        self._adapt(x, y, columns)

    def _unpacked(self, x: np.ndarray, y: np.ndarray, columns: slice) -> None:
        whole = len(self._blocks) * BLOCK
        blocks = slice(columns.start // BLOCK, min(columns.stop, whole) // BLOCK)
        grid = y[:, :whole].reshape(len(y), -1, BLOCK).swapaxes(0, 1)
        np.matmul(x[None], self._blocks[blocks], out=grid[blocks])
        if columns.start < columns.stop > whole:
            y[:, whole:] = (x @ self._rest.T)[:, : self.width - whole]

    def _adapt(self, x: np.ndarray, y: np.ndarray, columns: slice) -> None:
        """Add what the selected adapters add to ``columns`` of y."""
        if self._factors is None:
            return
        a, b = self._factors
        z = x @ a
        if self._own is not None:
            # Not a product: infinity times zero would be no number.
            z = np.where(self._own, z, np.float32(0))
        y[:, columns] += self._scale * (z @ b[:, columns])
