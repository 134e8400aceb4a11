"""How a step's records become micro-batches: what is run once, what is run side by side, and in what order.

Records with the same prompt are a *group*: its prompt is run once and every completion continues it. A record
alone with its prompt becomes a row of its own beside others like it. Both are the same thing here, rows of
tokens that continue a prefix, with the prefix empty in the second case.

The order follows the records' ids and lengths, never that of their arrival, so a step is reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selfplay_ray.errors import InferenceError, TrainingError
from selfplay_ray.types import TrainingRecord, check_spans

LENGTH_BUCKET = 8
"""Rows are padded to a multiple of this, so that few shapes occur and MLX finds its buffers again."""

PASS_OVERHEAD_TOKENS = 64
"""What one more pass through the model costs besides its tokens, in tokens; padding may cost as much."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """R rows of T tokens, right-padded, that all continue the same P tokens. Padding is never trained on.

    At position t a row reads ``inputs[row, t]`` and is asked for ``targets[row, t]``; where ``mask`` is True
    that target is trained on. ``versions`` are the records' own: the oldest policy that sampled a token of the
    row, because what came later was sampled from keys and values that were its.
    """

    prefix: npt.NDArray[np.int32]  # [P], P may be 0
    inputs: npt.NDArray[np.int32]  # [R, T]
    targets: npt.NDArray[np.int32]  # [R, T]
    mask: npt.NDArray[np.bool_]  # [R, T]
    behaviour_logprobs: npt.NDArray[np.float32]  # [R, T], nats
    advantages: npt.NDArray[np.float32]  # [R, T]
    temperatures: npt.NDArray[np.float32]  # [R, T]
    versions: npt.NDArray[np.int32]  # [R, T]

    @property
    def tokens_run(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.prefix.size + self.inputs.size

    @property
    def tokens_trained(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step cut into micro-batches, and how many of its records those hold."""

    batches: tuple[MicroBatch, ...]
    records: int
    skipped: int

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


def plan_step(records: Sequence[TrainingRecord], token_budget: int, vocabulary: int) -> StepPlan:
    """Cut a step into micro-batches of at most ``token_budget`` tokens run, padding and prompts included.

    A record with an advantage of 0, or without a trainable token, has no gradient and is skipped. A group
    that doesn't fit is split, and its prompt run once for each part; a record longer than the budget is run
    by itself.

    Raises:
        TrainingError: an id occurs twice, a number isn't finite, a temperature isn't above 0, a token has no policy
            version, or isn't one of the model's ``vocabulary``.
    """
    _check(records, vocabulary)
    informative = sorted((r for r in records if r.advantage != 0 and any(r.action_mask)), key=lambda r: r.id)
    groups: dict[tuple[int, ...], list[TrainingRecord]] = {}
    for record in informative:
        groups.setdefault(record.prompt_token_ids, []).append(record)
    batches = [
        _micro_batch(part, shared=len(prompt) - 1)
        for prompt, group in groups.items()
        if len(group) > 1
        for part in _cut(group, len(prompt) - 1, token_budget)
    ]
    alone = [group[0] for group in groups.values() if len(group) == 1]
    batches += [_micro_batch(part, shared=0) for part in _cut(alone, 0, token_budget)]
    return StepPlan(tuple(batches), len(informative), len(records) - len(informative))


def _cut(records: Iterable[TrainingRecord], shared: int, token_budget: int) -> list[list[TrainingRecord]]:
    """Split records that have ``shared`` leading tokens in common, shortest first, into parts to run at once.

    A part ends where the budget does, or where the next row would pad the others by more tokens than another
    pass costs.
    """
    parts: list[list[TrainingRecord]] = []
    padded = 0  # length of the last part's rows
    for record in sorted(records, key=lambda r: (_row_length(r, shared), r.id)):
        length = _row_length(record, shared)
        fits = bool(parts) and shared + (len(parts[-1]) + 1) * length <= token_budget
        if fits and len(parts[-1]) * (length - padded) <= shared + PASS_OVERHEAD_TOKENS:
            parts[-1].append(record)
        else:
            parts.append([record])
        padded = length
    return parts


def _row_length(record: TrainingRecord, shared: int) -> int:
    """Positions a record takes after its first ``shared`` tokens, padded; its last token is read by nobody."""
    return math.ceil((len(record.input_ids) - 1 - shared) / LENGTH_BUCKET) * LENGTH_BUCKET


def _micro_batch(records: Sequence[TrainingRecord], shared: int) -> MicroBatch:
    shape = (len(records), max(_row_length(record, shared) for record in records))
    batch = MicroBatch(
        prefix=np.array(records[0].input_ids[:shared], np.int32),
        inputs=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        mask=np.zeros(shape, np.bool_),
        behaviour_logprobs=np.zeros(shape, np.float32),
        advantages=np.zeros(shape, np.float32),
        temperatures=np.ones(shape, np.float32),
        versions=np.zeros(shape, np.int32),
    )
    for row, record in enumerate(records):
        _fill_row(batch, row, record, shared)
    return batch


def _fill_row(batch: MicroBatch, row: int, record: TrainingRecord, shared: int) -> None:
    tokens = record.input_ids[shared:]
    end = len(tokens) - 1
    start = end - len(record.completion_token_ids)
    batch.inputs[row, :end] = tokens[:-1]
    batch.targets[row, :end] = tokens[1:]
    batch.mask[row, start:end] = record.action_mask
    batch.behaviour_logprobs[row, start:end] = record.logprobs
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
        try:
            check_spans(record.spans, len(record.completion_token_ids), f"record {record.id}")
        except InferenceError as error:
            raise TrainingError(str(error)) from error
        if not (min(record.input_ids) >= 0 and max(record.input_ids) < vocabulary):
            raise TrainingError(
                f"record {record.id} holds a token outside the model's vocabulary of {vocabulary}; "
                "it was sampled by another model"
            )
