"""How a tree of tokens is run: cut into pages of one width, side by side in as many passes as are worth it.

A page is a row of the model's input: tokens that follow one another, which attend to themselves and to the pages
before them on their path. A page that several paths share is run once. Pages of like depth go through the model
together; one whole path could too, each page seeing the others of its own pass, but it would compute, and throw
away, as many scores again for the keys that it mustn't see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from selfplay_ray.training.prefix_tree import PrefixTree, Segment, segments

PASS_OVERHEAD = 64
"""What one more pass through the model costs besides its tokens, in tokens."""

KEYS_PER_TOKEN = 350
"""So many keys cost a query as much as all else that the model does for a token (a 135M llama on a CPU)."""

GATHERED_PER_TOKEN = 32
"""So many keys and values put in their place cost as much as a token."""


@dataclass(frozen=True, slots=True)
class Page:
    """Tokens ``start`` to ``end`` of leaf ``leaf``; ``parent`` is the page before, ``depth`` how many there are."""

    leaf: int
    start: int
    end: int
    parent: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Pages of ``width`` tokens, and the passes they are run in: indices into ``pages``, parents never later.

    ``last`` is the page that each leaf ends on.
    """

    width: int
    pages: tuple[Page, ...]
    passes: tuple[tuple[int, ...], ...]
    last: tuple[int, ...]

    @property
    def tokens_run(self) -> int:
        return sum(bucket(len(indices)) for indices in self.passes) * self.width

    @property
    def cost(self) -> float:
        """Estimated, in tokens."""
        return sum(_pass_cost(len(i), self.pages[i[-1]].depth, self.width) for i in self.passes)

    def path(self, page: int) -> list[int]:
        """The pages before ``page``, from the root."""
        path = []
        parent = self.pages[page].parent
        while parent is not None:
            path.append(parent)
            parent = self.pages[parent].parent
        return path[::-1]


def lay_out(tree: PrefixTree, token_budget: int) -> Layout:
    """The cheapest layout within ``token_budget`` tokens run, or, where there is none, the smallest."""
    parts = segments(tree)
    layouts = [_with_width(parts, width) for width in _widths(max(map(len, tree.leaves)))]
    return min(layouts, key=lambda layout: (max(layout.tokens_run, token_budget), layout.cost))


def bucket(size: int, sizes: int = 16) -> int:
    """``size`` rounded up so that from n to 2n there are but ``sizes`` different ones, all below that as is."""
    step = 1 << max(0, (size - 1).bit_length() - sizes.bit_length())
    return ceil(size / step) * step


def _widths(longest: int) -> Iterator[int]:
    """Multiples of 8, four from n to 2n, up to the first that holds ``longest``."""
    width = 0
    while width < longest:
        width = 8 * bucket(width // 8 + 1, sizes=4)
        yield width


def _with_width(parts: Sequence[Segment], width: int) -> Layout:
    pages: list[Page] = []
    ends: list[
        tuple[int | None, int]
    ] = []  # of each segment: its last page, and how many tokens it leaves over
    last: list[int] = []
    for part in parts:
        page, left_over = (None, 0) if part.parent is None else ends[part.parent]
        start = part.start - left_over
        stop = part.end - _handed_on(part.end - start, part.children, width)
        for begin in range(start, stop, width):
            depth = 0 if page is None else pages[page].depth + 1
            pages.append(Page(part.leaf, begin, min(begin + width, stop), page, depth))
            page = len(pages) - 1
        ends.append((page, part.end - stop))
        if not part.children:
            assert page is not None
            last.append(page)
    return Layout(width, tuple(pages), _passes(pages, width), tuple(last))


def _handed_on(length: int, children: Sequence[int], width: int) -> int:
    """How many tokens at the end of a segment fill no page and are better run in each child's first page."""
    rest = length % width
    by_themselves = 1 + sum(ceil(child / width) for child in children)
    handed_on = sum(ceil((rest + child) / width) for child in children)
    return rest if children and handed_on < by_themselves else 0


def _passes(pages: Sequence[Page], width: int) -> tuple[tuple[int, ...], ...]:
    """Depth by depth; several at once where that costs less than a pass for each."""
    depths: list[list[int]] = [[] for _ in range(1 + max(page.depth for page in pages))]
    for index, page in enumerate(pages):
        depths[page.depth].append(index)
    passes: list[list[int]] = []
    saved = -inf
    for depth, indices in enumerate(depths):
        alone = _pass_cost(len(indices), depth, width)
        if passes:
            before = _pass_cost(len(passes[-1]), pages[passes[-1][-1]].depth, width)
            saved = before + alone - _pass_cost(len(passes[-1]) + len(indices), depth, width)
        if saved > 0:
            passes[-1] += indices
        else:
            passes.append(list(indices))
    return tuple(map(tuple, passes))


def _pass_cost(pages: int, depth: int, width: int) -> float:
    """Of so many pages that have up to ``depth`` pages before them, in tokens."""
    rows, keys = bucket(pages), (depth + 1) * width
    return PASS_OVERHEAD + rows * (width * (1 + keys / KEYS_PER_TOKEN) + keys / GATHERED_PER_TOKEN)
