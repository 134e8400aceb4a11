"""A micro-batch: the passes that its records take through the model, and what is trained of their outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfplay_ray.training.pages import Layout, bucket
from selfplay_ray.training.prefix_tree import PrefixTree, Tokens
from selfplay_ray.types import TrainingRecord

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
    record_ids: tuple[str, ...]  # [R]
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


def inputs_of(record: TrainingRecord) -> Tokens:
    """What the model reads of a record: nobody asks what follows its last token."""
    return record.input_ids[:-1]


def row_length(record: TrainingRecord) -> int:
    return math.ceil(len(inputs_of(record)) / LENGTH_BUCKET) * LENGTH_BUCKET


def rows_batch(records: Sequence[TrainingRecord]) -> MicroBatch:
    width = max(map(row_length, records))
    run = _empty_pass(len(records), width, depth=0)
    for row, record in enumerate(records):
        run.inputs[row, : len(inputs_of(record))] = inputs_of(record)
    places = [(record, row * width + np.arange(width)) for row, record in enumerate(records)]
    return _trained([run], places)


def pages_batch(
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
        record_ids=tuple(record.id for record, _ in places),
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
