"""How a step's records become micro-batches: what is run once, what is run side by side, and what is trained.

Records that begin alike, the samples of one prompt and the turns of one conversation, are the branches of a tree
whose every token is run once (``prefix_tree``, ``pages``). Where a model can't be run like this, each record is a
row of its own.

The order follows the records' tokens, lengths and ids, never that of their arrival, so a step is reproducible.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from selfplay_ray.errors import InferenceError, TrainingError
from selfplay_ray.training.micro_batch import MicroBatch, inputs_of, pages_batch, row_length, rows_batch
from selfplay_ray.training.pages import PASS_OVERHEAD, lay_out
from selfplay_ray.training.prefix_tree import PrefixTree, grow_tree
from selfplay_ray.types import TrainingRecord, check_spans


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step cut into micro-batches: the ``records`` they hold, in the order of their ids, and how many were skipped.

    ``distinct_tokens`` is how many of its tokens differ, or follow different ones: the least that must be run.
    """

    batches: tuple[MicroBatch, ...]
    records: tuple[TrainingRecord, ...]
    skipped: int
    distinct_tokens: int

    @property
    def tokens_run(self) -> int:
        return sum(batch.tokens_run for batch in self.batches)

    @property
    def tokens_trained(self) -> int:
        """Of every record that has a gradient."""
        return sum(batch.tokens_trained for batch in self.batches)


def plan_step(
    records: Sequence[TrainingRecord],
    token_budget: int,
    vocabulary: int,
    *,
    shared: bool = True,
    every: bool = False,
) -> StepPlan:
    """Cut a step into micro-batches of at most ``token_budget`` tokens run, padding and prompts included.

    A record without a trainable token has no gradient and is skipped, and so is one with an advantage of 0, unless
    the loss is one that looks at ``every`` record. A tree that doesn't fit is cut between two of its leaves, and
    what leads to both is run for either part; a sequence longer than the budget is run by itself. Without
    ``shared`` every record is run as one row that is all its own.

    Raises:
        TrainingError: an id occurs twice, a number isn't finite, a temperature isn't above 0, a token has no policy
            version, or isn't one of the model's ``vocabulary``.
    """
    _check(records, vocabulary)
    informative = sorted(
        (r for r in records if any(r.action_mask) and (every or r.advantage != 0)), key=lambda r: r.id
    )
    tree = grow_tree([inputs_of(record) for record in informative])
    cut = _cut_tree(tree, informative, token_budget) if shared else _cut_rows(informative, token_budget)
    return StepPlan(tuple(cut), tuple(informative), len(records) - len(informative), tree.tokens)


def _cut_tree(tree: PrefixTree, records: Sequence[TrainingRecord], budget: int) -> Iterator[MicroBatch]:
    trained_on = _by_leaf(tree, records)
    start = 0
    while start < len(tree.leaves):
        end = _reach(tree, start, budget)
        layout = lay_out(tree.part(start, end), budget)
        while layout.tokens_run > budget and end - start > 1:
            end = start + min(end - start - 1, max(1, (end - start) * budget // layout.tokens_run))
            layout = lay_out(tree.part(start, end), budget)
        yield pages_batch(tree.part(start, end), layout, trained_on[start:end])
        start = end


def _reach(tree: PrefixTree, start: int, budget: int) -> int:
    """The first leaf after ``start`` at which more than ``budget`` tokens would be run, even without padding."""
    tokens = len(tree.leaves[start])
    for end in range(start + 1, len(tree.leaves)):
        tokens += len(tree.leaves[end]) - tree.shared[end]
        if tokens > budget:
            return end
    return len(tree.leaves)


def _by_leaf(tree: PrefixTree, records: Sequence[TrainingRecord]) -> list[list[TrainingRecord]]:
    """Each leaf's records; one that begins several leaves goes with the least of them."""
    found: list[list[TrainingRecord]] = [[] for _ in tree.leaves]
    leaves = sorted(zip(tree.leaves, found, strict=True), key=itemgetter(0))
    for record in records:
        found_there = leaves[bisect_left(leaves, inputs_of(record), key=itemgetter(0))][1]
        found_there.append(record)
    return found


def _cut_rows(records: Sequence[TrainingRecord], budget: int) -> Iterator[MicroBatch]:
    """Rows of like length side by side: a longer one mustn't pad the others by more than another pass costs."""
    part: list[TrainingRecord] = []
    padded = 0
    for record in sorted(records, key=lambda r: (len(r.input_ids), r.id)):
        length = row_length(record)
        if part and ((len(part) + 1) * length > budget or len(part) * (length - padded) > PASS_OVERHEAD):
            yield rows_batch(part)
            part = []
        part.append(record)
        padded = length
    if part:
        yield rows_batch(part)


def _check(records: Sequence[TrainingRecord], vocabulary: int) -> None:
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise TrainingError(f"record {record.id} was given twice in one step; it may be trained on once")
        seen.add(record.id)
        if not (math.isfinite(record.advantage) and all(map(math.isfinite, record.logprobs))):
            raise TrainingError(f"record {record.id} has an advantage or a logprob that is not finite")
        if not (record.temperature > 0 and math.isfinite(record.temperature)):
            raise TrainingError(
                f"record {record.id} was sampled at temperature {record.temperature}; "
                "its role needs one above 0 to be trained on"
            )
        try:
            check_spans(record.spans, len(record.completion_token_ids), f"record {record.id}")
        except InferenceError as error:
            raise TrainingError(str(error)) from error
        if not (min(record.input_ids) >= 0 and max(record.input_ids) < vocabulary):
            raise TrainingError(
                f"record {record.id} holds a token outside the model's vocabulary of {vocabulary}; "
                "it was sampled by another model"
            )
