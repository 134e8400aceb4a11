"""The linear layers of a model, as compiled functions are told of them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.nn as nn
import numpy as np

from selfplay_ray.inference.adapters import Adapted
from selfplay_ray.inference.cpu.projections import BIAS, IN, OUT, RANK, RANKS, ROWS, WEIGHT, A, B
from selfplay_ray.inference.cpu.tiles import DEEP
from selfplay_ray.inference.cpu.vectors import LANES


class Linears:
    """What ``projections`` is told of ``layers``, y = x Wᵀ + b, with the adapters their selection tells of: ``table``
    int64[layers, 8] and ``scales`` float32[layers]."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._adapted = [layer if isinstance(layer, Adapted) else None for layer in layers]
        self._kept: list[np.ndarray] = []  # what the addresses are of
        self.table = np.zeros((len(layers), 8), dtype=np.int64)
        self.scales = np.array(
            [layer.scale if isinstance(layer, Adapted) else 0 for layer in layers], np.float32
        )
        self._factors: list[object] = [None] * len(layers)
        self._selected: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for row, layer in zip(self.table, layers, strict=True):
            linear = layer.linear if isinstance(layer, Adapted) else layer
            weight = np.asarray(linear.weight)  # the same memory
            row[OUT], row[IN] = weight.shape
            # No tile is larger than what there is.
            weight = _padded(weight, 0, max(len(weight), DEEP, LANES))
            row[ROWS], row[WEIGHT] = len(weight), self._keep(weight)
            if "bias" in linear:
                row[BIAS] = self._keep(np.asarray(linear.bias))

    def select(self) -> int:
        """Compute what follows with the adapters selected now; the highest rank. MLX's arrays are read here only."""
        for number, adapted in enumerate(self._adapted):
            if adapted is None or adapted.factors is self._factors[number]:
                continue
            row, self._factors[number] = self.table[number], adapted.factors
            row[RANK] = 0
            if adapted.factors is not None:
                a, b = (np.asarray(factor) for factor in adapted.factors)
                row[RANK] = rank = -(-len(b) // RANKS) * RANKS
                a, b = _padded(a, 1, rank), _padded(_padded(b, 0, rank), 1, int(row[ROWS]))
                row[A], row[B] = a.ctypes.data, b.ctypes.data
                self._selected[number] = a, b
        return int(self.table[:, RANK].max())

    def own(self, rank: int) -> np.ndarray | None:
        """Where rows differ in their adapter: uint8[B, rank], 1 in the part of the joined rank that is the row's."""
        for adapted in self._adapted:
            if adapted is not None:
                return (
                    None
                    if adapted.own is None
                    else _padded(np.asarray(adapted.own).astype(np.uint8), 1, rank)
                )
        return None

    def _keep(self, array: np.ndarray) -> int:
        """The address of an array, which stays."""
        kept = np.ascontiguousarray(array)
        self._kept.append(kept)
        return int(kept.ctypes.data)


def _padded(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """``array``, contiguous, with zeros up to a size along an axis; a copy only where there are to be some."""
    missing = size - array.shape[axis]
    if missing:
        array = np.pad(array, [(0, missing if number == axis else 0) for number in range(array.ndim)])
    return np.ascontiguousarray(array)
