"""The attention of a few tokens in one layer, compiled."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.compiled import inlined
from selfplay_ray.inference.cpu.exp import exp
from selfplay_ray.inference.cpu.tiles import narrow_tile
from selfplay_ray.inference.cpu.vectors import LANES, Code, coded, index, multiply_add

QUERIES = 4
"""How many look at a position at a time."""

VECTORS = 64 // LANES
"""Of the values that are mixed at a time, as many as leave the sums in registers."""

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
        scores[position] = exp(scores[position] - most)
    total: np.float32 = _sum(scores)
    return total


class Heads(NamedTuple):
    """Keys and values of a batch [slots, layers, heads, capacity, width], and what turns heads to their positions:
    cosines and sines [positions, width / 2]."""

    keys: np.ndarray
    values: np.ndarray
    cosines: np.ndarray
    sines: np.ndarray


class Seeing(NamedTuple):
    """What a thread attends with: ``queries`` [width, QUERIES], ``mixed`` [QUERIES, width], ``scores`` [QUERIES,
    capacity], ``sums`` [QUERIES] and a ``head`` [width]."""

    queries: np.ndarray
    mixed: np.ndarray
    scores: np.ndarray
    sums: np.ndarray
    head: np.ndarray

    @classmethod
    def new(cls, width: int, capacity: int) -> Self:
        shapes = (width, QUERIES), (QUERIES, width), (QUERIES, capacity), (QUERIES,), (width,)
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))


@inlined
def _turned(
    x: np.ndarray,
    token: int,
    head: int,
    norm: np.ndarray,
    epsilon: np.float32,
    heads: Heads,
    at: int,
    into: np.ndarray,
) -> None:
    """A head of a token of x [P, heads · width, lanes], normed if ``norm`` [width] isn't empty, and turned to its
    position (Su et al. 2021, arXiv:2104.09864, eq. 34): into [width]."""
    panel, lane = token // x.shape[2], token % x.shape[2]
    width = len(into)
    begin, half = head * width, width // 2
    factor = np.float32(1)
    if len(norm) > 0:
        total = np.float32(0)
        for place in range(width):
            total += x[panel, begin + place, lane] * x[panel, begin + place, lane]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
    for place in range(half):
        low, high = x[panel, begin + place, lane], x[panel, begin + half + place, lane]
        if len(norm) > 0:
            low, high = low * factor * norm[place], high * factor * norm[half + place]
        cosine, sine = heads.cosines[at, place], heads.sines[at, place]
        into[place] = low * cosine - high * sine
        into[half + place] = high * cosine + low * sine


@inlined
def keep(
    heads: Heads,
    layer: int,
    row: np.ndarray,
    head: int,
    key: np.ndarray,
    value: np.ndarray,
    norm: np.ndarray,
    epsilon: np.float32,
) -> None:
    """Add the keys and values [P, heads · width, lanes] of a row's tokens to what is kept of a head."""
    slot, held, first, count = row[0], row[1], row[2], row[3]
    keys, values = heads.keys[slot, layer, head], heads.values[slot, layer, head]
    lanes, width = value.shape[2], values.shape[1]
    for token in range(first, first + count):
        at = held + token - first
        _turned(key, token, head, norm, epsilon, heads, at, keys[at])
        for place in range(width):
            values[at, place] = value[token // lanes, head * width + place, token % lanes]


@inlined
def attend(
    heads: Heads,
    layer: int,
    row: np.ndarray,
    piece: np.ndarray,
    query: np.ndarray,
    norm: np.ndarray,
    epsilon: np.float32,
    scale: np.float32,
    attended: np.ndarray,
    seeing: Seeing,
) -> None:
    """What some tokens of a row attend to, by the queries that go with a key head: ``attended`` [P, n · heads · width,
    lanes], as ``query``."""
    slot, held, first, source, common = row[0], row[1], row[2], row[4], row[5]
    head, start, stop = piece[1], piece[2], piece[3]
    keys, values = heads.keys[slot, layer, head], heads.values[slot, layer, head]
    every, width, lanes = (
        query.shape[1] // (heads.keys.shape[2] * keys.shape[1]),
        keys.shape[1],
        query.shape[2],
    )
    for some in range(start * every, stop * every, QUERIES):
        several = min(QUERIES, stop * every - some)
        for number in range(several):
            token, of_head = (some + number) // every, head * every + (some + number) % every
            _turned(query, first + token, of_head, norm, epsilon, heads, held + token, seeing.head)
            for place in range(width):
                seeing.queries[place, number] = seeing.head[place] * scale
        seen = held + (some + several - 1) // every + 1
        for position in range(0, seen, LANES):
            where = heads.keys[source, layer, head] if position < common else keys
            _score(where, position, seeing.queries, seeing.scores[:, position:])
        for number in range(several):
            own = held + (some + number) // every + 1
            seeing.sums[number] = _weigh(seeing.scores[number, :own])
        seeing.mixed[:] = 0
        by_all = held + some // every + 1
        _mix(seeing.scores, heads.values[source, layer, head], 0, common, seeing.mixed)
        _mix(seeing.scores, values, common, by_all, seeing.mixed)
        for number in range(several):  # not by weights of 0: infinity times zero would be no number
            for position in range(by_all, held + (some + number) // every + 1):
                weight = seeing.scores[number, position]
                for place in range(width):
                    value = values[position, place]
                    seeing.mixed[number, place] = multiply_add(weight, value, seeing.mixed[number, place])
        for number in range(several):
            token, of_head = first + (some + number) // every, head * every + (some + number) % every
            for place in range(width):
                attended[token // lanes, of_head * width + place, token % lanes] = (
                    seeing.mixed[number, place] / seeing.sums[number]
                )
