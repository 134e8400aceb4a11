"""What compiled functions need to share their work among threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.compiled import inlined

SPINS = 20_000
"""How often is looked whether others have come before the core is left to who else may want it."""


@intrinsic
def _add(_typing: Any, counters: Any, place: Any, amount: Any) -> tuple[Any, Any]:
    """Add to a counter, int64; what it was."""

    def emit(context: Any, builder: Any, signature: Any, given: Sequence[ir.Value]) -> ir.Value:
        pointer = _pointer(context, builder, signature, given)
        return builder.atomic_rmw("add", pointer, given[2], "acq_rel")

    return types.int64(counters, types.int64, types.int64), emit


@intrinsic
def _read(_typing: Any, counters: Any, place: Any) -> tuple[Any, Any]:
    """A counter, as others have left it."""

    def emit(context: Any, builder: Any, signature: Any, given: Sequence[ir.Value]) -> ir.Value:
        return builder.load_atomic(_pointer(context, builder, signature, given), "acquire", 8)

    return types.int64(counters, types.int64), emit


@intrinsic
def _yield_core(_typing: Any) -> tuple[Any, Any]:
    def emit(context: Any, builder: Any, _signature: Any, _given: Sequence[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), emit


def _pointer(context: Any, builder: Any, signature: Any, given: Sequence[ir.Value]) -> ir.Value:
    array = context.make_array(signature.args[0])(context, builder, given[0])
    return cgutils.get_item_pointer(context, builder, signature.args[0], array, [given[1]])


@inlined
def taken(counters: np.ndarray, place: int) -> int:
    """The next number that no thread has taken from a counter."""
    number: int = _add(counters, place, 1)
    return number


@inlined
def wait(counters: np.ndarray, place: int, threads: int) -> None:
    """Go on when all threads are here, or one of them has given up and set the last counter; each counter serves once.
    They look for each other all the time, but leave the core to others if it takes long."""
    _add(counters, place, 1)
    spins = 0
    while _read(counters, place) < threads and _read(counters, len(counters) - 1) == 0:
        spins += 1
        if spins > SPINS:
            _yield_core()
