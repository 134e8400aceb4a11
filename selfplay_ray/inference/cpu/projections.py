"""Linear layers, with their biases and adapters, of rows that lie in panels; compiled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
from numba import carray
from numba.core import cgutils, types
from numba.extending import intrinsic

from selfplay_ray.inference.cpu.compiled import inlined
from selfplay_ray.inference.cpu.tiles import DEEP, WIDE, one_row, one_vector, several_vectors, tile, two_rows
from selfplay_ray.inference.cpu.vectors import LANES, multiply_add

RANKS = 8
"""The rank of adapters is a multiple of this, where necessary with zeros."""

CHUNK = math.lcm(DEEP, LANES)
"""Columns of the output that threads don't share: of whole tiles."""

WEIGHT, ROWS, OUT, IN, BIAS, A, B, RANK = range(8)
"""What the table of linear layers tells of each: where its weights are, how many rows these have, of which OUT are of
use, and how many inputs; where its bias is, or 0; where the factors of the adapters are, A [in, rank] and B [rank,
rows], and their rank, or 0."""


@intrinsic
def _pointer(_typing: Any, address: Any) -> tuple[Any, Any]:
    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], cgutils.voidptr_t)

    return types.voidptr(address), emit


@inlined
def matrix(address: int, rows: int, columns: int) -> np.ndarray:
    """The float32 that lie there."""
    there: np.ndarray = carray(_pointer(address), (rows, columns), np.float32)
    return there


class Scratch(NamedTuple):
    """What a thread computes with: ``sums`` [DEEP, WIDE · LANES] of a tile, and ``more`` of that shape for what is
    added to them, or for a norm's."""

    sums: np.ndarray
    more: np.ndarray

    @classmethod
    def new(cls) -> Self:
        return cls(*(np.zeros((DEEP, WIDE * LANES), np.float32) for _ in range(2)))


class Reduced(NamedTuple):
    """What adapters reduce rows to: ``z`` [P, rank, lanes] of their joined rank, zeros where a row has no part of it.
    Where rows differ, ``own`` uint8 of that shape is 1 in each one's part; else it has rank 0. ``ranks`` int64[P, 2]
    are the first that somebody in a panel has, and the end of the last, multiples of RANKS."""

    z: np.ndarray
    own: np.ndarray
    ranks: np.ndarray

    @classmethod
    def new(cls, panels: int, lanes: int, rank: int, own: np.ndarray | None) -> Self:
        """Zeros. Without ``own`` every row has the whole rank."""
        z = np.zeros((panels, rank, lanes), np.float32)
        if own is None:
            return cls(z, np.zeros((panels, 0, lanes), np.uint8), np.full((panels, 2), (0, rank)))
        ranks = np.zeros((panels, 2), np.int64)
        for panel in range(panels):
            has = np.flatnonzero(own[panel].any(axis=1)) // RANKS
            if len(has):
                ranks[panel] = has[0] * RANKS, (has[-1] + 1) * RANKS
        return cls(z, own, ranks)


_ranks_of_one, _ranks_of_several = tile(RANKS, 1, turned=True), tile(RANKS, WIDE, turned=True)
_more_of_one, _more_of_several = tile(DEEP, 1, turned=True), tile(DEEP, WIDE, turned=True)


@inlined
def chunks(linear: np.ndarray) -> int:
    """How many there are."""
    count: int = -(-linear[OUT] // CHUNK)
    return count


@inlined
def reduce(
    linear: np.ndarray,
    x: np.ndarray,
    panels: tuple[int, int],
    first: int,
    reduced: Reduced,
    scratch: Scratch,
) -> None:
    """RANKS of z = x A from the ``first``, for those of WIDE panels at most that have any of them."""
    a = matrix(linear[A], linear[IN], linear[RANK])
    have = 0
    for panel in range(panels[0], panels[1]):
        have += _has(reduced, panel, first)
    if x.shape[2] == LANES and have == WIDE:
        _ranks_of_several(a, first, x, panels[0], scratch.sums)
    for panel in range(panels[0], panels[1]):
        sums = scratch.sums[:, (panel - panels[0]) * LANES :]
        if _has(reduced, panel, first):
            if x.shape[2] < LANES:
                _reduce_narrow(a, first, x[panel], sums)
            elif have < WIDE:
                _ranks_of_one(a, first, x, panel, sums)
            _keep_own(reduced, panel, first, sums)


@inlined
def _reduce_narrow(a: np.ndarray, first: int, x: np.ndarray, sums: np.ndarray) -> None:
    for number in range(RANKS):
        for lane in range(x.shape[1]):
            total = np.float32(0)
            for place in range(len(a)):
                total = multiply_add(a[place, first + number], x[place, lane], total)
            sums[number, lane] = total


@inlined
def _keep_own(reduced: Reduced, panel: int, first: int, sums: np.ndarray) -> None:
    own, z = reduced.own, reduced.z
    for number in range(RANKS):
        for lane in range(z.shape[2]):
            value = sums[number, lane]
            # Not a product: infinity times zero would be no number.
            if own.shape[1] > 0 and own[panel, first + number, lane] == 0:
                value = np.float32(0)
            z[panel, first + number, lane] = value


@inlined
def _has(reduced: Reduced, panel: int, rank: int) -> bool:
    has: bool = reduced.ranks[panel, 0] <= rank < reduced.ranks[panel, 1]
    return has


@inlined
def project(
    linear: np.ndarray,
    scale: np.float32,
    x: np.ndarray,
    reduced: Reduced,
    panels: tuple[int, int],
    chunk: int,
    add: bool,
    y: np.ndarray,
    scratch: Scratch,
) -> None:
    """A chunk of the columns of y = x Wᵀ + bias + scale · z B, for some panels; added to y or in its place."""
    weights = matrix(linear[WEIGHT], linear[ROWS], linear[IN])
    start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, linear[OUT])
    if x.shape[2] == LANES:
        for column in range(start, stop, DEEP):
            first = min(column, linear[ROWS] - DEEP)  # what is computed twice comes out the same
            panel = panels[0]
            while panel < panels[1]:
                vectors = min(WIDE, panels[1] - panel)
                if vectors == WIDE:
                    several_vectors(weights, first, x, panel, scratch.sums)
                else:
                    one_vector(weights, first, x, panel, scratch.sums)
                if linear[RANK] > 0:
                    _expand(linear, first, reduced, (panel, panel + vectors), scratch)
                end = min(first + DEEP, stop)
                _finish(linear, scale, (panel, panel + vectors), first, column, end, add, y, scratch)
                panel += vectors
    else:
        for column in range(start, stop, LANES):
            first = min(column, linear[ROWS] - LANES)
            if x.shape[2] == 1:
                one_row(weights, first, x[0], scratch.sums)
            else:
                two_rows(weights, first, x[0], scratch.sums)
            _finish_narrow(linear, scale, reduced, first, column, min(first + LANES, stop), add, y, scratch)


@inlined
def _expand(
    linear: np.ndarray, first: int, reduced: Reduced, panels: tuple[int, int], scratch: Scratch
) -> None:
    """DEEP columns of z B from the ``first``, for WIDE panels at most, into ``scratch.more``."""
    b, z, ranks = matrix(linear[B], linear[RANK], linear[ROWS]), reduced.z, reduced.ranks
    start, stop = ranks[panels[0]]
    alike = panels[1] - panels[0] == WIDE
    for panel in range(panels[0] + 1, panels[1]):
        alike = alike and ranks[panel, 0] == start and ranks[panel, 1] == stop
    if alike:
        _more_of_several(b[start:stop], first, z[:, start:stop], panels[0], scratch.more)
    else:
        for panel in range(panels[0], panels[1]):
            start, stop = ranks[panel]
            more = scratch.more[:, (panel - panels[0]) * LANES :]
            _more_of_one(b[start:stop], first, z[:, start:stop], panel, more)


@inlined
def _finish(
    linear: np.ndarray,
    scale: np.float32,
    panels: tuple[int, int],
    first: int,
    start: int,
    stop: int,
    add: bool,
    y: np.ndarray,
    scratch: Scratch,
) -> None:
    """Take the columns from ``start`` to ``stop`` of a tile's sums, the ``first`` of which is there."""
    for panel in range(panels[0], panels[1]):
        begin = (panel - panels[0]) * LANES
        for column in range(start, stop):
            sums = scratch.sums[column - first, begin : begin + LANES]
            if linear[BIAS] != 0:
                bias = matrix(linear[BIAS], 1, linear[OUT])[0, column]
                for lane in range(LANES):
                    sums[lane] += bias
            if linear[RANK] > 0:
                for lane in range(LANES):
                    sums[lane] += scale * scratch.more[column - first, begin + lane]
            for lane in range(LANES):
                y[panel, column, lane] = y[panel, column, lane] + sums[lane] if add else sums[lane]


@inlined
def _finish_narrow(
    linear: np.ndarray,
    scale: np.float32,
    reduced: Reduced,
    first: int,
    start: int,
    stop: int,
    add: bool,
    y: np.ndarray,
    scratch: Scratch,
) -> None:
    """The same of a narrow tile, whose columns are the lanes of its sums."""
    for lane in range(y.shape[2]):
        for column in range(start, stop):
            value = scratch.sums[lane, column - first]
            if linear[BIAS] != 0:
                value += matrix(linear[BIAS], 1, linear[OUT])[0, column]
            if linear[RANK] > 0:
                b = matrix(linear[B], linear[RANK], linear[ROWS])
                more = np.float32(0)
                for number in range(reduced.ranks[0, 0], reduced.ranks[0, 1]):
                    more = multiply_add(b[number, column], reduced.z[0, number, lane], more)
                value += scale * more
            if add:
                y[0, column, lane] += value
            else:
                y[0, column, lane] = value
