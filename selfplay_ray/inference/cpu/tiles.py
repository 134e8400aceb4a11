"""Products with few rows, y = x Wᵀ: W [out, in] is read once, from where it lies.

A tile of y is summed up in registers, input by input, while the weights of the tiles to come are on their way from
memory. Of few rows either takes about as long as the other; OpenBLAS does one after the other, and packs W before, or
W's transpose. Each number of y is one chain of multiplications and additions, in the order of the inputs: the same to
the last bit in any tile, whatever is in the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.compiled import compiled
from selfplay_ray.inference.cpu.vectors import CACHE_LINE, LANES, Code, coded, index

WIDE = 2 if LANES == 16 else 1
"""Vectors of rows in a tile, as many as leave the sums in registers."""

DEEP = 12
"""Weights in a tile of many rows, each multiplied with vectors of rows."""

NARROW = 2
"""Up to so many rows the weights are the vectors, LANES in a tile, which are turned as they come from memory."""


def tile(vectors: int) -> Any:
    """tile(weights [out, in], first, panels [P, in, LANES], panel, sums [DEEP, ≥ vectors · LANES]): DEEP weights from
    ``first`` times ``vectors`` panels from ``panel``."""

    @coded
    def emit(code: Code) -> None:
        builder, (_, first, _, panel, _) = code.builder, code.given
        weights, (_, inputs) = code.rows(0, first, DEEP), code.shape(0)
        panels = [code.at(2, builder.add(panel, index(number)), 0, 0) for number in range(vectors)]
        sums = [code.variables([None] * vectors) for _ in range(DEEP)]

        def add_input(number: ir.Value) -> None:
            lanes = builder.mul(number, index(LANES))
            rows = [code.vector(code.further(start, lanes)) for start in panels]
            for weight, by_vector in zip(weights, sums, strict=True):
                value = code.everywhere(code.further(weight, number))
                for row, variable in zip(rows, by_vector, strict=True):
                    code.add(variable, value, row)

        def add_inputs(start: ir.Value) -> None:
            code.fetch(weights, start, inputs)
            code.each(start, builder.add(start, index(CACHE_LINE)), add_input)

        code.each_block(0, inputs, CACHE_LINE, add_inputs, add_input)
        for weight, by_vector in enumerate(sums):
            for number, variable in enumerate(by_vector):
                code.put(builder.load(variable), code.at(4, weight, number * LANES))

    @intrinsic
    def made(_typing: Any, weights: Any, first: Any, panels: Any, panel: Any, sums: Any) -> tuple[Any, Any]:
        return types.void(weights, first, panels, panel, sums), emit

    return made


def narrow_tile(rows: int) -> Any:
    """tile(weights [out, in], first, x [≥ rows, in], sums [≥ rows, ≥ LANES]): LANES weights from ``first`` times
    ``rows`` of x."""

    @coded
    def emit(code: Code) -> None:
        builder, (_, inputs) = code.builder, code.shape(0)
        weights = code.rows(0, code.given[1], LANES)
        x, sums = code.rows(2, 0, rows), code.variables([None] * rows)

        def add_column(column: ir.Value, number: ir.Value) -> None:
            for row, variable in zip(x, sums, strict=True):
                code.add(variable, column, code.everywhere(code.further(row, number)))

        def add_inputs(start: ir.Value) -> None:
            code.fetch(weights, start, inputs)
            columns = code.turned([code.vector(code.further(weight, start)) for weight in weights])
            for number, column in enumerate(columns):
                add_column(column, builder.add(start, index(number)))

        def add_input(number: ir.Value) -> None:
            add_column(code.gathered([code.further(weight, number) for weight in weights]), number)

        code.each_block(0, inputs, LANES, add_inputs, add_input)
        for row, variable in enumerate(sums):
            code.put(builder.load(variable), code.at(3, row, 0))

    @intrinsic
    def made(_typing: Any, weights: Any, first: Any, x: Any, sums: Any) -> tuple[Any, Any]:
        return types.void(weights, first, x, sums), emit

    return made


_one_vector, _several_vectors = tile(1), tile(WIDE)
_one_row, _two_rows = narrow_tile(1), narrow_tile(NARROW)

_WEIGHTS = types.Array(types.float32, 2, "C", readonly=True)
_MATRIX, _PANELS = types.float32[:, ::1], types.float32[:, :, ::1]


@compiled(types.void(_PANELS, _WEIGHTS, _MATRIX, types.int64, types.int64))
def multiply(panels: np.ndarray, weights: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
    """Columns ``start`` to ``stop`` of y [N, out], of rows that lie in ``panels`` [⌈N / LANES⌉, in, LANES] and weights
    [out ≥ DEEP, in]."""
    last = len(weights) - DEEP
    sums = np.empty((DEEP, WIDE * LANES), np.float32)
    for column in range(start, stop, DEEP):
        first = min(column, last)  # what is computed twice comes out the same
        panel = 0
        while panel < len(panels):
            vectors = min(WIDE, len(panels) - panel)
            if vectors == WIDE:
                _several_vectors(weights, first, panels, panel, sums)
            else:
                _one_vector(weights, first, panels, panel, sums)
            begin = panel * LANES
            for row in range(min(vectors * LANES, len(y) - begin)):
                for weight in range(column - first, min(DEEP, stop - first)):
                    y[begin + row, first + weight] = sums[weight, row]
            panel += vectors


@compiled(types.void(_MATRIX, _WEIGHTS, _MATRIX, types.int64, types.int64))
def multiply_narrow(x: np.ndarray, weights: np.ndarray, y: np.ndarray, start: int, stop: int) -> None:
    """The same of N ≤ NARROW rows x [N, in] and weights [out ≥ LANES, in]."""
    last = len(weights) - LANES
    sums = np.empty((NARROW, LANES), np.float32)
    for column in range(start, stop, LANES):
        first = min(column, last)
        if len(x) == 1:
            _one_row(weights, first, x, sums)
        else:
            _two_rows(weights, first, x, sums)
        for row in range(len(x)):
            for weight in range(column - first, min(LANES, stop - first)):
                y[row, first + weight] = sums[row, weight]


@compiled(types.void(types.Array(types.float32, 2, "C", readonly=True), _PANELS))
def pack(x: np.ndarray, panels: np.ndarray) -> None:
    """Rows x [N, in] as ``panels`` [⌈N / LANES⌉, in, LANES]; rows past the last are zeros."""
    for panel in range(len(panels)):
        begin = panel * LANES
        rows = min(LANES, len(x) - begin)
        for number in range(x.shape[1]):
            for row in range(rows):
                panels[panel, number, row] = x[begin + row, number]
            for row in range(rows, LANES):
                panels[panel, number, row] = 0
