"""All layers of a forward pass, compiled.

Any number of threads run them side by side. Of each part of a layer, each thread takes pieces as long as there are
some, so that one that is held up holds up nobody; then they wait for each other.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from selfplay_ray.inference.cpu.attend import Heads, Seeing, attend, keep
from selfplay_ray.inference.cpu.compiled import compiled, inlined
from selfplay_ray.inference.cpu.exp import exp
from selfplay_ray.inference.cpu.projections import (
    CHUNK,
    OUT,
    RANK,
    RANKS,
    Reduced,
    Scratch,
    chunks,
    project,
    reduce,
)
from selfplay_ray.inference.cpu.threads import taken, wait
from selfplay_ray.inference.cpu.tiles import WIDE

QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(7)
"""The linear layers of a layer."""

TOGETHER = 8
"""Panels that are multiplied with the same weights, as many as a core's cache holds."""

APART = 8
"""Counters from one that is used to the next, so that no two are in one cache line."""

PARTS = 14
"""Of a layer, each with a counter of what is taken and one of who has come."""


class Weights(NamedTuple):
    """Of all layers: the table of linear ones int64[layers, 7, 8] (``projections``), their adapters' ``scales``
    float32[layers, 7], the norms before attention and MLP [layers, 2, hidden] and of queries and keys [layers, 2,
    width or 0], what is added under the root in each [3], and what scores are multiplied with."""

    linears: np.ndarray
    scales: np.ndarray
    norms: np.ndarray
    head_norms: np.ndarray
    epsilons: np.ndarray
    scale: np.float32


class Space(NamedTuple):
    """Activations, in panels, and what adapters ``reduced`` them to for as many linear layers as there are side by
    side."""

    h: np.ndarray
    normed: np.ndarray
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attended: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    reduced: tuple[Reduced, Reduced, Reduced]


class Crew(NamedTuple):
    """How many threads there are, and the ``counters`` they share, int64 zeros[(layers · PARTS · 2 + 1) · APART]."""

    threads: int
    counters: np.ndarray

    @classmethod
    def of(cls, threads: int, layers: int) -> Self:
        return cls(threads, np.zeros((layers * PARTS * 2 + 1) * APART, np.int64))

    def give_up(self) -> None:
        """Let nobody wait any more; what they compute is of no use."""
        self.counters[-1] = 1


@inlined
def _take(crew: Crew, part: int) -> int:
    """The next piece of a part that no thread has taken."""
    number: int = taken(crew.counters, part * 2 * APART)
    return number


@inlined
def _meet(crew: Crew, part: int) -> None:
    """Go on when all have done theirs of a part."""
    if crew.threads > 1:
        wait(crew.counters, (part * 2 + 1) * APART, crew.threads)


@inlined
def _norm(
    x: np.ndarray,
    norm: np.ndarray,
    epsilon: np.float32,
    y: np.ndarray,
    crew: Crew,
    part: int,
    scratch: Scratch,
) -> None:
    """y = x / √(mean x² + ε) · weight of each token (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""
    panels, width, lanes = x.shape
    sums = scratch.more[0]
    panel = _take(crew, part)
    while panel < panels:
        sums[:] = 0
        for place in range(width):
            for lane in range(lanes):
                sums[lane] += x[panel, place, lane] * x[panel, place, lane]
        for lane in range(lanes):
            sums[lane] = np.float32(1) / np.sqrt(sums[lane] / np.float32(width) + epsilon)
        for place in range(width):
            for lane in range(lanes):
                y[panel, place, lane] = x[panel, place, lane] * sums[lane] * norm[place]
        panel = _take(crew, part)
    _meet(crew, part)


@inlined
def _reduce(
    linears: np.ndarray,
    x: np.ndarray,
    space: Space,
    crew: Crew,
    part: int,
    scratch: Scratch,
) -> None:
    """What the adapters of some linear layers reduce x to, in ``space.reduced``."""
    parts, pieces = space.reduced[0].z.shape[1] // RANKS, -(-len(x) // WIDE)
    number = _take(crew, part)
    while number < pieces * parts * len(linears):
        which, some, piece = number // parts // pieces, number // pieces % parts * RANKS, number % pieces
        if some < linears[which, RANK]:
            panels = piece * WIDE, min((piece + 1) * WIDE, len(x))
            reduce(linears[which], x, panels, some, space.reduced[which], scratch)
        number = _take(crew, part)
    _meet(crew, part)


@inlined
def _project(
    linear: np.ndarray,
    scale: np.float32,
    x: np.ndarray,
    reduced: Reduced,
    add: bool,
    y: np.ndarray,
    crew: Crew,
    part: int,
    scratch: Scratch,
) -> None:
    """A linear layer of x, added to y or in its place; others needn't have done theirs."""
    count = chunks(linear)
    number = _take(crew, part)
    while number < count * -(-len(x) // TOGETHER):
        panels = number // count * TOGETHER, min((number // count + 1) * TOGETHER, len(x))
        project(linear, scale, x, reduced, panels, number % count, add, y, scratch)
        number = _take(crew, part)


@inlined
def _gate(
    linears: np.ndarray, scales: np.ndarray, space: Space, crew: Crew, part: int, scratch: Scratch
) -> None:
    """silu(gate) · up, into ``space.gate``."""
    x, count, lanes = space.normed, chunks(linears[GATE]), space.normed.shape[2]
    number = _take(crew, part)
    while number < count * -(-len(x) // TOGETHER):
        panels = number // count * TOGETHER, min((number // count + 1) * TOGETHER, len(x))
        chunk = number % count
        project(linears[GATE], scales[GATE], x, space.reduced[0], panels, chunk, False, space.gate, scratch)
        project(linears[UP], scales[UP], x, space.reduced[1], panels, chunk, False, space.up, scratch)
        for panel in range(panels[0], panels[1]):
            for column in range(chunk * CHUNK, min((chunk + 1) * CHUNK, linears[GATE, OUT])):
                for lane in range(lanes):
                    gate = space.gate[panel, column, lane]
                    small = exp(-abs(gate))
                    sigmoid = (np.float32(1) if gate >= 0 else small) / (np.float32(1) + small)
                    space.gate[panel, column, lane] = gate * sigmoid * space.up[panel, column, lane]
        number = _take(crew, part)
    _meet(crew, part)


@inlined
def _keep(
    weights: Weights, layer: int, space: Space, heads: Heads, rows: np.ndarray, crew: Crew, part: int
) -> None:
    count, norm = heads.keys.shape[2], weights.head_norms[layer, 1]
    number = _take(crew, part)
    while number < len(rows) * count:
        row, head = rows[number // count], number % count
        keep(heads, layer, row, head, space.key, space.value, norm, weights.epsilons[2])
        number = _take(crew, part)
    _meet(crew, part)


@inlined
def _attend(
    weights: Weights,
    layer: int,
    space: Space,
    heads: Heads,
    rows: np.ndarray,
    pieces: np.ndarray,
    crew: Crew,
    part: int,
    seeing: Seeing,
) -> None:
    norm, epsilon = weights.head_norms[layer, 0], weights.epsilons[1]
    number = _take(crew, part)
    while number < len(pieces):
        piece = pieces[number]
        row, query, attended = rows[piece[0]], space.query, space.attended
        attend(heads, layer, row, piece, query, norm, epsilon, weights.scale, attended, seeing)
        number = _take(crew, part)
    _meet(crew, part)


@compiled
def run_layers(
    weights: Weights,
    space: Space,
    heads: Heads,
    rows: np.ndarray,
    pieces: np.ndarray,
    crew: Crew,
    scratch: Scratch,
    seeing: Seeing,
) -> None:
    """Let ``space.h`` become the last layer's, by every thread of the ``crew``; ``rows`` and ``pieces`` are those of
    ``attention.Attention``."""
    for layer in range(len(weights.linears)):
        linears, scales = weights.linears[layer], weights.scales[layer]
        norms, part = weights.norms[layer], layer * PARTS
        h, x, attended, reduced = space.h, space.normed, space.attended, space.reduced
        adapted = reduced[0].z.shape[1] > 0

        _norm(h, norms[0], weights.epsilons[0], x, crew, part, scratch)
        if adapted:
            _reduce(linears[QUERY : VALUE + 1], x, space, crew, part + 1, scratch)
        _project(linears[QUERY], scales[QUERY], x, reduced[0], False, space.query, crew, part + 2, scratch)
        _project(linears[KEY], scales[KEY], x, reduced[1], False, space.key, crew, part + 3, scratch)
        _project(linears[VALUE], scales[VALUE], x, reduced[2], False, space.value, crew, part + 4, scratch)
        _meet(crew, part + 4)

        _keep(weights, layer, space, heads, rows, crew, part + 5)
        _attend(weights, layer, space, heads, rows, pieces, crew, part + 6, seeing)
        if adapted:
            _reduce(linears[OUTPUT : OUTPUT + 1], attended, space, crew, part + 7, scratch)
        _project(linears[OUTPUT], scales[OUTPUT], attended, reduced[0], True, h, crew, part + 8, scratch)
        _meet(crew, part + 8)

        _norm(h, norms[1], weights.epsilons[0], x, crew, part + 9, scratch)
        if adapted:
            _reduce(linears[GATE : UP + 1], x, space, crew, part + 10, scratch)
        _gate(linears, scales, space, crew, part + 11, scratch)
        if adapted:
            _reduce(linears[DOWN : DOWN + 1], space.gate, space, crew, part + 12, scratch)
        _project(linears[DOWN], scales[DOWN], space.gate, reduced[0], True, h, crew, part + 13, scratch)
        _meet(crew, part + 13)


@compiled
def run_head(
    linear: np.ndarray,
    x: np.ndarray,
    nothing: Reduced,
    y: np.ndarray,
    rows: np.ndarray,
    crew: Crew,
    scratch: Scratch,
) -> None:
    """A linear layer of x [P, in, lanes] without adapters, in y [P, out, lanes] and as ``rows`` [N, out]."""
    count, lanes = chunks(linear), x.shape[2]
    number = _take(crew, 0)
    while number < count * -(-len(x) // TOGETHER):
        panels = number // count * TOGETHER, min((number // count + 1) * TOGETHER, len(x))
        chunk = number % count
        project(linear, np.float32(0), x, nothing, panels, chunk, False, y, scratch)
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, linear[OUT])
        for panel in range(panels[0], panels[1]):
            for lane in range(min(lanes, len(rows) - panel * lanes)):
                for column in range(start, stop):
                    rows[panel * lanes + lane, column] = y[panel, column, lane]
        number = _take(crew, 0)
