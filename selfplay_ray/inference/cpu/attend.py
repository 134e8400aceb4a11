"""One layer's attention, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.compiled import compiled, inlined
from selfplay_ray.inference.cpu.tiles import narrow_tile
from selfplay_ray.inference.cpu.vectors import LANES, Code, coded, index, multiply_add

QUERIES = 4
"""How many look at a position at a time."""

VECTORS = 64 // LANES
"""Of the values that are mixed at a time, as many as leave the sums in registers."""

LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST = np.float32(-87.3)
"""What e to the power of is still a normal number."""


_score = narrow_tile(QUERIES)


@coded
def _emit_mix(code: Code) -> None:
    builder, (_, _, start, stop, column, _) = code.builder, code.given
    columns = [builder.add(column, index(number * LANES)) for number in range(VECTORS)]
    places = [[code.at(5, row, place) for place in columns] for row in range(QUERIES)]
    sums = [code.variables([code.vector(place) for place in by_row]) for by_row in places]

    def add_position(position: ir.Value) -> None:
        values = [code.vector(code.at(1, position, place)) for place in columns]
        for row, by_row in enumerate(sums):
            weight = code.everywhere(code.at(0, row, position))
            for variable, value in zip(by_row, values, strict=True):
                code.add(variable, weight, value)

    code.each(start, stop, add_position)
    for by_row, variables in zip(places, sums, strict=True):
        for place, variable in zip(by_row, variables, strict=True):
            code.put(builder.load(variable), place)


@intrinsic
def _mix_vectors(
    _typing: Any, weights: Any, values: Any, start: Any, stop: Any, column: Any, mixed: Any
) -> tuple[Any, Any]:
    """Add to VECTORS vectors of ``mixed`` [QUERIES, width], from ``column``, weights [QUERIES, ≥ stop] · values
    [positions, width] of some positions."""
    return types.void(weights, values, start, stop, column, mixed), _emit_mix


@inlined
def _mix(weights: np.ndarray, values: np.ndarray, start: int, stop: int, mixed: np.ndarray) -> None:
    """Add weights [QUERIES, ≥ stop] · values [positions, width] of some positions to mixed [QUERIES, width]."""
    width = values.shape[1]
    whole = width // (VECTORS * LANES) * VECTORS * LANES
    for column in range(0, whole, VECTORS * LANES):
        _mix_vectors(weights, values, start, stop, column, mixed)
    for row in range(QUERIES):
        for position in range(start, stop):
            for column in range(whole, width):
                value = values[position, column]
                mixed[row, column] = multiply_add(weights[row, position], value, mixed[row, column])


@inlined
def _exp(x: np.float32) -> np.float32:
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


@inlined
def _highest(scores: np.ndarray) -> np.float32:
    a = b = c = d = scores[0]  # four, so that none waits for the one before
    whole = len(scores) // 4 * 4
    for position in range(0, whole, 4):
        a, b = max(a, scores[position]), max(b, scores[position + 1])
        c, d = max(c, scores[position + 2]), max(d, scores[position + 3])
    for position in range(whole, len(scores)):
        a = max(a, scores[position])
    return max(a, b, c, d)


@inlined(fastmath={"reassoc"})
def _sum(weights: np.ndarray) -> np.float32:
    """In an order that depends on nothing but how many there are."""
    total = np.float32(0)
    for position in range(len(weights)):
        total += weights[position]
    return total


@inlined
def _weigh(scores: np.ndarray) -> np.float32:
    """Make e to the power of what they are below the highest of the scores; the sum."""
    most = _highest(scores)
    for position in range(len(scores)):
        scores[position] = _exp(scores[position] - most)
    total: np.float32 = _sum(scores)
    return total


@inlined
def _turn(
    x: np.ndarray, cosines: np.ndarray, sines: np.ndarray, scale: np.float32, turned: np.ndarray
) -> None:
    """A head x [width], turned to its position (Su et al. 2021, arXiv:2104.09864, eq. 34) and scaled."""
    half = len(cosines)
    for number in range(half):
        low, high = x[number], x[half + number]
        turned[number] = (low * cosines[number] - high * sines[number]) * scale
        turned[half + number] = (high * cosines[number] + low * sines[number]) * scale


_TOKENS = types.Array(types.float32, 2, "C", readonly=True)
_ATTENDED, _CACHE = types.float32[:, ::1], types.float32[:, :, :, :, ::1]
_TABLE = types.Array(types.int64, 2, "C", readonly=True)


@compiled(
    types.void(
        _TOKENS,
        _TOKENS,
        _TOKENS,
        _CACHE,
        _CACHE,
        types.int64,
        _TABLE,
        _TABLE,
        _TOKENS,
        _TOKENS,
        types.float32,
        _ATTENDED,
    )
)
def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    layer: int,
    rows: np.ndarray,
    pieces: np.ndarray,
    cosines: np.ndarray,
    sines: np.ndarray,
    scale: np.float32,
    attended: np.ndarray,
) -> None:
    """What tokens attend to, [N, n · heads · width], by queries of that shape; of ``rows`` those ``pieces``, as
    ``attention.Attention`` has them. Before that the keys and values [N, heads · width] of their rows' heads are added
    to ``keys`` and ``values`` [slots, layers, heads, capacity, width].

    Of a row's head that is in more than one thread's pieces each adds all: they write the same."""
    width = keys.shape[4]
    every = query.shape[1] // key.shape[1]
    queries, mixed = np.zeros((QUERIES, width), np.float32), np.empty((QUERIES, width), np.float32)
    scores, sums = np.empty((QUERIES, keys.shape[3]), np.float32), np.empty(QUERIES, np.float32)
    for piece in range(len(pieces)):
        row, head, start, stop = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2], pieces[piece, 3]
        slot, held, first = rows[row, 0], rows[row, 1], rows[row, 2]
        count, source, common = rows[row, 3], rows[row, 4], rows[row, 5]
        own_keys, own_values = keys[slot, layer, head], values[slot, layer, head]
        begin = head * width
        if piece == 0 or pieces[piece - 1, 0] != row or pieces[piece - 1, 1] != head:
            for token in range(count):
                at, new = held + token, key[first + token, begin : begin + width]
                _turn(new, cosines[at], sines[at], np.float32(1), own_keys[at])
                own_values[at] = value[first + token, begin : begin + width]
        for some in range(start * every, stop * every, QUERIES):
            several = min(QUERIES, stop * every - some)
            for number in range(several):
                token, of_head = (some + number) // every, head * every + (some + number) % every
                heads = query[first + token, of_head * width : (of_head + 1) * width]
                _turn(heads, cosines[held + token], sines[held + token], scale, queries[number])
            seen = held + (some + several - 1) // every + 1
            for position in range(0, seen, LANES):
                where = source if position < common else slot
                _score(keys[where, layer, head], position, queries, scores[:, position:])
            mixed[:] = 0
            for number in range(several):
                own = held + (some + number) // every + 1
                sums[number] = _weigh(scores[number, :own])
                scores[number, own:seen] = 0
            _mix(scores, values[source, layer, head], 0, common, mixed)
            _mix(scores, own_values, common, seen, mixed)
            for number in range(several):
                token, of_head = (some + number) // every, head * every + (some + number) % every
                for column in range(width):
                    attended[first + token, of_head * width + column] = mixed[number, column] / sums[number]
