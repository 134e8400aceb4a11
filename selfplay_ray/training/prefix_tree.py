"""Sequences that begin alike, as a tree: its leaves are sequences, its segments what runs between two branchings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Sequences of which none begins another, each beside those that it has most in common with.

    ``shared[i]`` is how many leading tokens leaf i has in common with leaf i - 1, and so, because of their order,
    how many it has in common with any of those before it; 0 for the first.
    """

    leaves: tuple[Tokens, ...]
    shared: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many distinct tokens there are: those that differ, or that follow different ones."""
        return sum(map(len, self.leaves)) - sum(self.shared)

    def part(self, start: int, end: int) -> PrefixTree:
        """The tree of the leaves from ``start`` to ``end``, exclusive."""
        return PrefixTree(self.leaves[start:end], (0, *self.shared[start + 1 : end])[: end - start])


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``start`` to ``end`` of leaf ``leaf`` and of all others that begin like it, up to a branching.

    ``parent`` is the index of the segment that ends where this one starts, None for a root. ``children`` are the
    lengths of those that follow: none where a leaf ends.
    """

    leaf: int
    start: int
    end: int
    parent: int | None
    children: tuple[int, ...]


def grow_tree(sequences: Sequence[Tokens]) -> PrefixTree:
    """The tree of ``sequences``, whatever their order; one that begins another has no leaf of its own.

    Where the tree branches, what leads to the shortest longest leaf comes first: neighbours are of like length.
    """
    ordered = sorted(set(sequences))
    following = [*ordered[1:], ()][: len(ordered)]
    leaves = [a for a, b in zip(ordered, following, strict=True) if b[: len(a)] != a]
    lexical = PrefixTree(tuple(leaves), _shared_lengths(leaves))
    order = _by_height(lexical)
    leaves = [leaves[i] for i in order]
    return PrefixTree(tuple(leaves), _shared_lengths(leaves))


def segments(tree: PrefixTree) -> list[Segment]:
    """The tree's segments, each after its parent, leaf by leaf."""
    spans: list[tuple[int, int, int, int | None]] = []
    children: list[list[int]] = []
    path: list[int] = []
    for leaf, shared in enumerate(tree.shared):
        while path and spans[path[-1]][2] > shared:
            path.pop()
        start = shared
        for end in _ends(tree, leaf):
            parent = path[-1] if path else None
            if parent is not None:
                children[parent].append(end - start)
            path.append(len(spans))
            spans.append((leaf, start, end, parent))
            children.append([])
            start = end
    return [Segment(*span, tuple(lengths)) for span, lengths in zip(spans, children, strict=True)]


def _ends(tree: PrefixTree, leaf: int) -> list[int]:
    """Where the segments end that ``leaf`` is the first to have: at branchings to later leaves, and at its end."""
    ends, nearest = [len(tree.leaves[leaf])], len(tree.leaves[leaf])
    for shared in tree.shared[leaf + 1 :]:
        nearest = min(nearest, shared)
        if nearest <= tree.shared[leaf]:
            break
        if nearest < ends[-1]:
            ends.append(nearest)
    return ends[::-1]


def _by_height(tree: PrefixTree) -> list[int]:
    """The leaves' indices in an order that keeps every subtree together, lower subtrees first."""
    parts = segments(tree)
    height = [part.end for part in parts]
    below: dict[int | None, list[int]] = {}
    for index in reversed(range(len(parts))):
        parent = parts[index].parent
        below.setdefault(parent, []).append(index)
        if parent is not None:
            height[parent] = max(height[parent], height[index])
    for siblings in below.values():
        siblings.sort(key=lambda index: (height[index], index), reverse=True)
    order: list[int] = []
    waiting = below.get(None, [])
    while waiting:
        index = waiting.pop()
        waiting += below.get(index, [])
        if index not in below:
            order.append(parts[index].leaf)
    return order


def _shared_lengths(leaves: Sequence[Tokens]) -> tuple[int, ...]:
    arrays = [np.array(leaf, np.int32) for leaf in leaves]
    return (0, *map(_shared_length, arrays[1:], arrays))[: len(leaves)]


def _shared_length(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    length = min(a.size, b.size)
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length
