"""Products with few rows, y = x Wᵀ: W [out, in] is read once, from where it lies.

A tile of y is summed up in registers, input by input, while the weights of the tiles to come are on their way from
memory. Of few rows either takes about as long as the other; OpenBLAS does one after the other, and packs W before, or
W's transpose. Each number of y is one chain of multiplications and additions, in the order of the inputs: the same to
the last bit in any tile, whatever is in the others.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.vectors import CACHE_LINE, LANES, Code, coded, index

WIDE = 2 if LANES == 16 else 1
"""Vectors of rows in a tile, as many as leave the sums in registers."""

DEEP = 12
"""Weights in a tile of many rows, each multiplied with vectors of rows."""

NARROW = 2
"""Up to so many rows the weights are the vectors, LANES in a tile, which are turned as they come from memory."""


def tile(deep: int, vectors: int, turned: bool = False) -> Any:
    """tile(weights [out, in], first, panels [P, in, LANES], panel, sums [≥ deep, ≥ vectors · LANES]): ``deep`` weights
    from ``first`` times ``vectors`` panels from ``panel``. If ``turned``, weights are [in, out], and not fetched."""

    @coded
    def emit(code: Code) -> None:
        builder, (_, first, _, panel, _) = code.builder, code.given
        if turned:
            inputs, stride = code.shape(0)
            weights = [code.at(0, 0, builder.add(first, index(number))) for number in range(deep)]
        else:
            (_, inputs), stride = code.shape(0), index(1)
            weights = code.rows(0, first, deep)
        panels = [code.at(2, builder.add(panel, index(number)), 0, 0) for number in range(vectors)]
        sums = [code.variables([None] * vectors) for _ in range(deep)]

        def add_input(number: ir.Value) -> None:
            lanes, place = builder.mul(number, index(LANES)), builder.mul(number, stride)
            rows = [code.vector(code.further(start, lanes)) for start in panels]
            for weight, by_vector in zip(weights, sums, strict=True):
                value = code.everywhere(code.further(weight, place))
                for row, variable in zip(rows, by_vector, strict=True):
                    code.add(variable, value, row)

        def add_inputs(start: ir.Value) -> None:
            if not turned:
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
    """tile(weights [out, in], first, x [in, rows], sums [≥ rows, ≥ LANES]): LANES weights from ``first`` times x."""

    @coded
    def emit(code: Code) -> None:
        builder, (_, inputs) = code.builder, code.shape(0)
        weights, x = code.rows(0, code.given[1], LANES), code.at(2, 0, 0)
        sums = code.variables([None] * rows)

        def add_column(column: ir.Value, number: ir.Value) -> None:
            start = code.further(x, builder.mul(number, index(rows)))
            for row, variable in enumerate(sums):
                code.add(variable, column, code.everywhere(code.further(start, row)))

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


one_vector, several_vectors = tile(DEEP, 1), tile(DEEP, WIDE)
one_row, two_rows = narrow_tile(1), narrow_tile(NARROW)
