"""Layouts: every leaf finds its tokens on its path, and no more is run than the width of a page explains."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.training.pages import Layout, bucket, lay_out
from selfplay_ray.training.prefix_tree import PrefixTree, grow_tree, segments

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60).map(tuple), min_size=1, max_size=20)


def samples(seed: int, prompt: int, completions: list[int]) -> PrefixTree:
    draw = random.Random(seed)
    told = tuple(draw.randrange(10**6) for _ in range(prompt))
    return grow_tree([told + tuple(draw.randrange(10**6) for _ in range(length)) for length in completions])


def tokens_on_path(tree: PrefixTree, layout: Layout, leaf: int) -> tuple[int, ...]:
    path = [*layout.path(layout.last[leaf]), layout.last[leaf]]
    pages = [layout.pages[index] for index in path]
    return tuple(token for page in pages for token in tree.leaves[page.leaf][page.start : page.end])


def test_a_group_shares_the_pages_of_its_prompt():
    layout = lay_out(samples(0, 96, [32] * 16), 10_000)
    assert layout.tokens_run == 96 + 16 * 32
    assert len({layout.pages[last].parent for last in layout.last}) == 1


def test_what_fills_no_page_is_run_in_each_childs_first():
    """Five tokens, then two branches of three: a page of 8 for each branch, not a third for what they share."""
    layout = lay_out(samples(0, 5, [3, 3]), 10_000)
    assert [(page.start, page.end, page.parent) for page in layout.pages] == [(0, 8, None), (0, 8, None)]


def test_a_long_sequence_is_cut_so_that_early_tokens_see_few_keys():
    layout = lay_out(samples(0, 0, [2000]), 10_000)
    assert len(layout.passes) > 3
    assert layout.tokens_run <= 2000 + layout.width


def test_a_tight_budget_chooses_the_least_padding():
    tree = samples(0, 96, [32] * 15)
    assert lay_out(tree, 10_000).tokens_run <= lay_out(tree, 1).tokens_run + 64
    assert lay_out(tree, 1).tokens_run <= min(
        layout.tokens_run for layout in (lay_out(tree, budget) for budget in (10, 600, 1000))
    )


@pytest.mark.parametrize(("size", "rounded"), [(1, 1), (31, 31), (32, 32), (33, 34), (64, 64), (65, 68)])
def test_sixteen_sizes_from_each_number_to_its_double(size, rounded):
    assert bucket(size) == rounded


@given(st.integers(1, 100_000), st.sampled_from([4, 16]))
def test_a_bucket_is_never_much_larger(size, sizes):
    assert size <= bucket(size, sizes) <= size * (1 + 1 / sizes)
    assert bucket(bucket(size, sizes), sizes) == bucket(size, sizes)


@given(sequences=SEQUENCES, budget=st.integers(1, 2000))
def test_every_leaf_finds_its_tokens_on_its_path(sequences, budget):
    tree = grow_tree(sequences)
    layout = lay_out(tree, budget)
    for leaf, tokens in enumerate(tree.leaves):
        assert tokens_on_path(tree, layout, leaf) == tokens
    order = [index for indices in layout.passes for index in indices]
    assert sorted(order) == list(range(len(layout.pages)))
    for number, indices in enumerate(layout.passes):
        earlier = {index for other in layout.passes[: number + 1] for index in other}
        assert earlier.issuperset(parent for i in indices if (parent := layout.pages[i].parent) is not None)
        assert layout.pages[indices[-1]].depth == max(layout.pages[i].depth for i in indices)
    assert all(0 < page.end - page.start <= layout.width for page in layout.pages)


@given(sequences=SEQUENCES)
def test_little_more_is_run_than_the_distinct_tokens(sequences):
    """The bound of padding: a segment is padded to a multiple of 8, and rows come in sixteen sizes."""
    tree = grow_tree(sequences)
    padded = sum((part.end - part.start + 7) // 8 * 8 for part in segments(tree))
    assert lay_out(tree, 10_000).tokens_run <= 1.3 * padded
