"""Linear layers of rows: of few by ``tiles``, of many by OpenBLAS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.adapters import Adapted
from selfplay_ray.inference.cpu.tiles import DEEP, NARROW, multiply, multiply_narrow, pack
from selfplay_ray.inference.cpu.vectors import LANES

BLOCK = math.lcm(DEEP, LANES)
"""Columns of the output that threads don't share: of whole tiles."""

FEW = 128
"""Rows up to which OpenBLAS is no faster."""

Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Rows:
    """What linear layers are given: ``each`` row [N, in], and these as ``tiles.multiply`` reads them, if it will."""

    each: np.ndarray
    panels: np.ndarray | None

    @classmethod
    def of(cls, each: np.ndarray) -> Self:
        count, inputs = each.shape
        if not NARROW < count <= FEW:
            return cls(each, None)
        panels = np.empty((-(-count // LANES), inputs, LANES), dtype=np.float32)
        pack(each, panels)
        return cls(each, panels)

    @property
    def few(self) -> bool:
        """Whether what becomes of a row is the same to the last bit, whatever other rows there are and however the
        columns are shared; but for what adapters add."""
        return len(self.each) <= FEW


class Linear:
    """y = x Wᵀ + b of ``layer``, with the adapters its selection tells of."""

    def __init__(self, layer: nn.Module) -> None:
        self._adapted = layer if isinstance(layer, Adapted) else None
        linear = layer.linear if isinstance(layer, Adapted) else layer
        weight = np.ascontiguousarray(linear.weight)  # the same memory
        self.shape: tuple[int, int] = weight.shape
        self.width, _ = self.shape
        # No tile is larger than what there is.
        self._weight = np.pad(weight, ((0, BLOCK - self.width), (0, 0))) if self.width < BLOCK else weight
        self._bias = np.asarray(linear.bias) if "bias" in linear else None
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

    def part(self, x: Rows, y: np.ndarray, columns: slice) -> None:
        """Compute ``columns`` of y [N, out] from x [N, in]."""
        if x.panels is not None:
            multiply(x.panels, self._weight, y, columns.start, columns.stop)
        elif x.few:
            multiply_narrow(x.each, self._weight, y, columns.start, columns.stop)
        else:
            np.matmul(x.each, self._weight[columns].T, out=y[:, columns])
        if self._bias is not None:
            y[:, columns] += self._bias[columns]
        self._adapt(x.each, y, columns)

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
