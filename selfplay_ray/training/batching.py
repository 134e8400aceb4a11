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

import numpy as np
import numpy.typing as npt

from selfplay_ray.errors import InferenceError, TrainingError
from selfplay_ray.training.pages import PASS_OVERHEAD, Layout, bucket, lay_out
from selfplay_ray.training.prefix_tree import PrefixTree, Tokens, grow_tree
from selfplay_ray.types import TrainingRecord, check_spans

LENGTH_BUCKET = 8
"""Rows are padded to a multiple of this, so that few shapes occur and MLX finds its buffers again."""

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """S rows of tokens that go through the model together, right-padded; rows of no tokens at all may follow.

    ``starts`` is each row's first position. Besides itself a row sees up to K rows before it on its path:
    ``context`` names them by their place among all rows of the micro-batch's passes, in order, and ``visible``
    says how many tokens of each there are to see, 0 where the place is unused.
    """

    inputs: IntArray  # [S, width]
    starts: IntArray  # [S]
    context: IntArray  # [S, K], K may be 0
    visible: IntArray  # [S, K]


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """The passes that R records take, and what is trained of their outcome: up to T tokens of each record.

    ``targets[r, t]`` is to be predicted from position ``positions[r, t]`` among all tokens of all passes, in
    order; so the first tokens of two samples come from one position. Where ``mask`` is False there is nothing.
    ``versions`` are the records' own: the oldest policy that sampled a token of the record, because what came
    later was sampled from keys and values that were its.
    """

    passes: tuple[Pass, ...]
    positions: IntArray  # [R, T]
    targets: IntArray  # [R, T]
    mask: npt.NDArray[np.bool_]  # [R, T]
    behaviour_logprobs: FloatArray  # [R, T], nats
    advantages: FloatArray  # [R, T]
    temperatures: FloatArray  # [R, T]
    versions: IntArray  # [R, T]

    @property
    def tokens_run(self) -> int:
        """Tokens that go through the model, padding included."""
        return sum(run.inputs.size for run in self.passes)

    @property
    def tokens_trained(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step cut into micro-batches, and how many of its records those hold.

    ``distinct_tokens`` is how many of its tokens differ, or follow different ones: the least that must be run.
    """

    batches: tuple[MicroBatch, ...]
    records: int
    skipped: int
    distinct_tokens: int

    @property
    def tokens_run(self) -> int:
        return sum(batch.tokens_run for batch in self.batches)

    @property
    def tokens_trained(self) -> int:
        """The denominator of the step's loss: the trained tokens of every record that has a gradient.

        Records that were skipped count in neither the sum nor here, so that a batch of uninformative groups
        doesn't shrink the step of the informative ones.
        """
        return sum(batch.tokens_trained for batch in self.batches)


def plan_step(
    records: Sequence[TrainingRecord], token_budget: int, vocabulary: int, *, shared: bool = True
) -> StepPlan:
    """Cut a step into micro-batches of at most ``token_budget`` tokens run, padding and prompts included.

    A record with an advantage of 0, or without a trainable token, has no gradient and is skipped. A tree that
    doesn't fit is cut between two of its leaves, and what leads to both is run for either part; a sequence longer
    than the budget is run by itself. Without ``shared`` every record is run as one row that is all its own.

    Raises:
        TrainingError: an id occurs twice, a number isn't finite, a temperature isn't above 0, a token has no policy
            version, or isn't one of the model's ``vocabulary``.
    """
    _check(records, vocabulary)
    informative = sorted((r for r in records if r.advantage != 0 and any(r.action_mask)), key=lambda r: r.id)
    tree = grow_tree([_inputs(record) for record in informative])
    cut = _cut_tree(tree, informative, token_budget) if shared else _cut_rows(informative, token_budget)
    return StepPlan(tuple(cut), len(informative), len(records) - len(informative), tree.tokens)


def _inputs(record: TrainingRecord) -> Tokens:
    """What the model reads of a record: nobody asks what follows its last token."""
    return record.input_ids[:-1]


def _cut_tree(tree: PrefixTree, records: Sequence[TrainingRecord], budget: int) -> Iterator[MicroBatch]:
    trained_on = _by_leaf(tree, records)
    start = 0
    while start < len(tree.leaves):
        end = _reach(tree, start, budget)
        layout = lay_out(tree.part(start, end), budget)
        while layout.tokens_run > budget and end - start > 1:
            end = start + min(end - start - 1, max(1, (end - start) * budget // layout.tokens_run))
            layout = lay_out(tree.part(start, end), budget)
        yield _micro_batch(tree.part(start, end), layout, trained_on[start:end])
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
        found_there = leaves[bisect_left(leaves, _inputs(record), key=itemgetter(0))][1]
        found_there.append(record)
    return found


def _cut_rows(records: Sequence[TrainingRecord], budget: int) -> Iterator[MicroBatch]:
    """Rows of like length side by side: a longer one mustn't pad the others by more than another pass costs."""
    part: list[TrainingRecord] = []
    padded = 0
    for record in sorted(records, key=lambda r: (len(r.input_ids), r.id)):
        length = _row_length(record)
        if part and ((len(part) + 1) * length > budget or len(part) * (length - padded) > PASS_OVERHEAD):
            yield _rows(part)
            part = []
        part.append(record)
        padded = length
    if part:
        yield _rows(part)


def _row_length(record: TrainingRecord) -> int:
    return math.ceil(len(_inputs(record)) / LENGTH_BUCKET) * LENGTH_BUCKET


def _rows(records: Sequence[TrainingRecord]) -> MicroBatch:
    width = max(map(_row_length, records))
    run = _empty_pass(len(records), width, depth=0)
    for row, record in enumerate(records):
        run.inputs[row, : len(_inputs(record))] = _inputs(record)
    places = [(record, row * width + np.arange(width)) for row, record in enumerate(records)]
    return _trained([run], places)


def _micro_batch(
    tree: PrefixTree, layout: Layout, trained_on: Sequence[Sequence[TrainingRecord]]
) -> MicroBatch:
    rows: dict[int, int] = {}  # of each page, among those of all passes
    passes: list[Pass] = []
    before = 0
    for indices in layout.passes:
        rows.update({page: before + row for row, page in enumerate(indices)})
        passes.append(_pass(tree, layout, indices, rows))
        before += bucket(len(indices))
    places = []
    for last, records in zip(layout.last, trained_on, strict=True):
        path = [*layout.path(last), last]
        spans = [
            rows[page] * layout.width + np.arange(layout.pages[page].end - layout.pages[page].start)
            for page in path
        ]
        places += [(record, np.concatenate(spans)) for record in records]
    return _trained(passes, places)


def _pass(tree: PrefixTree, layout: Layout, indices: Sequence[int], rows: dict[int, int]) -> Pass:
    depth = max(layout.pages[index].depth for index in indices)
    run = _empty_pass(bucket(len(indices)), layout.width, depth)
    for row, index in enumerate(indices):
        page = layout.pages[index]
        run.inputs[row, : page.end - page.start] = tree.leaves[page.leaf][page.start : page.end]
        run.starts[row] = page.start
        for place, other in enumerate(layout.path(index)):
            run.context[row, place] = rows[other]
            run.visible[row, place] = layout.pages[other].end - layout.pages[other].start
    return run


def _empty_pass(rows: int, width: int, depth: int) -> Pass:
    return Pass(
        inputs=np.zeros((rows, width), np.int32),
        starts=np.zeros(rows, np.int32),
        context=np.zeros((rows, depth), np.int32),
        visible=np.zeros((rows, depth), np.int32),
    )


def _trained(
    passes: Sequence[Pass], places: Sequence[tuple[TrainingRecord, npt.NDArray[np.int_]]]
) -> MicroBatch:
    """``places`` holds each record with where the model reads its tokens, among all tokens of ``passes``."""
    most = max(sum(record.action_mask) for record, _ in places)
    shape = (len(places), math.ceil(most / LENGTH_BUCKET) * LENGTH_BUCKET)
    batch = MicroBatch(
        passes=tuple(passes),
        positions=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        mask=np.zeros(shape, np.bool_),
        behaviour_logprobs=np.zeros(shape, np.float32),
        advantages=np.zeros(shape, np.float32),
        temperatures=np.ones(shape, np.float32),
        versions=np.zeros(shape, np.int32),
    )
    for row, (record, positions) in enumerate(places):
        _fill_row(batch, row, record, positions)
    return batch


def _fill_row(batch: MicroBatch, row: int, record: TrainingRecord, positions: npt.NDArray[np.int_]) -> None:
    sampled = np.flatnonzero(record.action_mask)
    trained = slice(0, sampled.size)
    batch.positions[row, trained] = positions[len(record.prompt_token_ids) - 1 + sampled]
    batch.targets[row, trained] = np.array(record.completion_token_ids)[sampled]
    batch.mask[row, trained] = True
    batch.behaviour_logprobs[row, trained] = np.array(record.logprobs)[sampled]
    batch.advantages[row] = record.advantage
    batch.temperatures[row] = record.temperature
    batch.versions[row] = record.policy_version


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
        if not record.prompt_token_ids:
            raise TrainingError(
                f"record {record.id} has no prompt; its first token was predicted from nothing"
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
