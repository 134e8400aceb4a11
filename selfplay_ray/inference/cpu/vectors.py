"""What compiled functions are put together from where the compiler's own vectors won't do: vectors of the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
"""Numbers in a vector; of machines that have none so wide LLVM takes several."""

CACHE_LINE = 16
"""Numbers that come from memory at once."""

AHEAD = 128
"""Numbers of a row between those that are read and those that are fetched."""

FLOAT, INDEX, INT = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR, MASK = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
Values = list[ir.Value]


class Code:
    """Code that is written at ``builder``, of a function that is given float32 arrays and numbers."""

    def __init__(self, context: Any, builder: Any, signature: Any, given: Sequence[ir.Value]) -> None:
        self._context, self.builder, self._types, self.given = context, builder, signature.args, given

    def at(self, argument: int, *where: ir.Value | int) -> ir.Value:
        """A pointer to a number of the array that is that argument."""
        array_type = self._types[argument]
        array = self._context.make_array(array_type)(self._context, self.builder, self.given[argument])
        places = [index(part) for part in where]
        return cgutils.get_item_pointer(self._context, self.builder, array_type, array, places)

    def shape(self, argument: int) -> Values:
        array = self._context.make_array(self._types[argument])(
            self._context, self.builder, self.given[argument]
        )
        sizes: Values = cgutils.unpack_tuple(self.builder, array.shape)
        return sizes

    def rows(self, argument: int, first: ir.Value | int, count: int) -> Values:
        """Pointers to the beginnings of so many rows."""
        return [self.at(argument, self.builder.add(index(first), index(row)), 0) for row in range(count)]

    def further(self, pointer: ir.Value, numbers: ir.Value | int) -> ir.Value:
        return self.builder.gep(pointer, [index(numbers)])

    def fetch(self, rows: Values, number: ir.Value, length: ir.Value) -> None:
        """Have what will be read AHEAD of ``number`` come from memory: of ``rows`` of that length, which follow each
        other, or where these end of as many after them."""
        ahead = self.builder.add(number, index(AHEAD))
        beyond = self.builder.add(ahead, self.builder.mul(length, index(len(rows) - 1)))
        place = self.builder.select(self.builder.icmp_signed("<", ahead, length), ahead, beyond)
        byte = ir.IntType(8).as_pointer()
        fetch = self._function("llvm.prefetch.p0", ir.VoidType(), [byte, INT, INT, INT])
        read, soon, data = (ir.Constant(INT, what) for what in (0, 3, 1))
        for row in rows:  # where there is no memory nothing is fetched
            pointer = self.builder.bitcast(self.further(row, place), byte)
            self.builder.call(fetch, [pointer, read, soon, data])

    def vector(self, pointer: ir.Value) -> ir.Value:
        loaded = self.builder.load(self.builder.bitcast(pointer, VECTOR.as_pointer()))
        loaded.align = 4
        return loaded

    def put(self, vector: ir.Value, pointer: ir.Value) -> None:
        stored = self.builder.store(vector, self.builder.bitcast(pointer, VECTOR.as_pointer()))
        stored.align = 4

    def gathered(self, pointers: Sequence[ir.Value]) -> ir.Value:
        """A vector of what LANES pointers point to."""
        vector = ir.Constant(VECTOR, ir.Undefined)
        for lane, pointer in enumerate(pointers):
            vector = self.builder.insert_element(vector, self.builder.load(pointer), ir.Constant(INT, lane))
        return vector

    def everywhere(self, pointer: ir.Value) -> ir.Value:
        """A vector of nothing but that number."""
        undefined = ir.Constant(VECTOR, ir.Undefined)
        one = self.builder.insert_element(undefined, self.builder.load(pointer), ir.Constant(INT, 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(MASK, [0] * LANES))

    def turned(self, vectors: Values) -> Values:
        """The transpose of LANES vectors: of blocks of two, of these of four, and so on (Eklundh 1972)."""
        size = 1
        while size < LANES:
            for low in (number for number in range(LANES) if not number & size):
                pair = vectors[low], vectors[low | size]
                lower = [lane + LANES - size if lane & size else lane for lane in range(LANES)]
                upper = [lane + LANES if lane & size else lane + size for lane in range(LANES)]
                vectors[low], vectors[low | size] = (
                    self.builder.shuffle_vector(*pair, ir.Constant(MASK, mask)) for mask in (lower, upper)
                )
            size *= 2
        return vectors

    def variables(self, beginnings: Sequence[ir.Value | None]) -> Values:
        """Vectors that change, zeros where nothing else is said."""
        zeros = ir.Constant(VECTOR, [0.0] * LANES)
        variables = [cgutils.alloca_once(self.builder, VECTOR) for _ in beginnings]
        for variable, beginning in zip(variables, beginnings, strict=True):
            self.builder.store(zeros if beginning is None else beginning, variable)
        return variables

    def add(self, variable: ir.Value, left: ir.Value, right: ir.Value) -> None:
        """left · right, rounded once with the sum where the machine can."""
        multiply_add = self._function(f"llvm.fmuladd.v{LANES}f32", VECTOR, [VECTOR] * 3)
        total = self.builder.call(multiply_add, [left, right, self.builder.load(variable)])
        self.builder.store(total, variable)

    def each(self, start: ir.Value | int, stop: ir.Value, do: Callable[[ir.Value], None]) -> None:
        """All numbers in their order."""
        with cgutils.for_range_slice(self.builder, index(start), stop, index(1)) as (number, _):
            do(number)

    def each_block(
        self,
        start: ir.Value | int,
        stop: ir.Value,
        size: int,
        block: Callable[[ir.Value], None],
        one: Callable[[ir.Value], None],
    ) -> None:
        """All numbers in their order, ``size`` at a time, and what is left one by one."""
        blocks = self.builder.udiv(self.builder.sub(stop, index(start)), index(size))
        whole = self.builder.add(index(start), self.builder.mul(blocks, index(size)))
        with cgutils.for_range_slice(self.builder, index(start), whole, index(size)) as (number, _):
            block(number)
        self.each(whole, stop, one)

    def _function(self, name: str, returned: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        return cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(returned, arguments), name)


def index(value: ir.Value | int) -> ir.Value:
    return ir.Constant(INDEX, value) if isinstance(value, int) else value


def coded(write: Callable[..., None]) -> Callable[[Any, Any, Any, Sequence[ir.Value]], Any]:
    """What Numba asks of who writes code, of a function that writes it and returns nothing."""

    def emit(context: Any, builder: Any, signature: Any, given: Sequence[ir.Value]) -> Any:
        write(Code(context, builder, signature, given))
        return context.get_dummy_value()

    return emit


@intrinsic
def multiply_add(_typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Any]:
    """a · b + c of float32, rounded once where the machine can."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Sequence[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(FLOAT, [FLOAT] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), given)

    return types.float32(types.float32, types.float32, types.float32), emit
