"""Trees of sequences: what they share is found, whatever the order they come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.training.prefix_tree import Segment, grow_tree, segments

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=12)


def prefixes(sequences):
    return {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}


def test_two_samples_of_one_prompt_and_a_longer_stranger():
    tree = grow_tree([(7, 7, 7, 7, 7), (1, 2, 3), (1, 2, 4, 5)])
    assert tree.leaves == ((1, 2, 3), (1, 2, 4, 5), (7, 7, 7, 7, 7))
    assert tree.shared == (0, 2, 0)
    assert tree.tokens == 2 + 1 + 2 + 5
    assert segments(tree) == [
        Segment(leaf=0, start=0, end=2, parent=None, children=(1, 2)),
        Segment(leaf=0, start=2, end=3, parent=0, children=()),
        Segment(leaf=1, start=2, end=4, parent=0, children=()),
        Segment(leaf=2, start=0, end=5, parent=None, children=()),
    ]


def test_a_conversation_is_one_segment():
    tree = grow_tree([(1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 2)])
    assert segments(tree) == [Segment(leaf=0, start=0, end=6, parent=None, children=())]


def test_what_leads_to_the_lower_leaves_comes_first():
    tree = grow_tree([(1, 1, 9, 9, 9), (1, 2, 8), (1, 1, 7)])
    assert tree.leaves == ((1, 2, 8), (1, 1, 7), (1, 1, 9, 9, 9))
    assert tree.shared == (0, 1, 2)


def test_a_branching_at_every_token_needs_no_recursion():
    path = tuple(range(1500))
    tree = grow_tree([(*path[:end], -1) for end in range(1, 1500)])
    assert len(segments(tree)) == 2 * 1499 - 1
    assert tree.tokens == 1499 + 1499


def test_no_sequences_no_tree():
    tree = grow_tree([])
    assert (tree.leaves, tree.tokens, segments(tree)) == ((), 0, [])


@given(sequences=SEQUENCES, data=st.data())
def test_every_distinct_token_is_there_once(sequences, data):
    tree = grow_tree(sequences)
    assert prefixes(tree.leaves) == prefixes(sequences)
    assert tree.tokens == len(prefixes(sequences))
    parts = segments(tree)
    assert sum(part.end - part.start for part in parts) == tree.tokens
    for index, part in enumerate(parts):
        assert part.start == (0 if part.parent is None else parts[part.parent].end)
        assert part.children == tuple(other.end - other.start for other in parts if other.parent == index)
        assert len(part.children) != 1  # or it would be one segment with its child
    assert grow_tree(data.draw(st.permutations(sequences))) == tree


@given(sequences=SEQUENCES, data=st.data())
def test_a_part_is_the_tree_of_its_leaves(sequences, data):
    tree = grow_tree(sequences)
    start = data.draw(st.integers(0, len(tree.leaves)))
    end = data.draw(st.integers(start, len(tree.leaves)))
    part = tree.part(start, end)
    assert part.leaves == tree.leaves[start:end]
    assert part.tokens == len(prefixes(part.leaves))
