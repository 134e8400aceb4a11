"""How trees of rollouts are kept in ``rollouts.jsonl``: everything one reads, without the tokens unless asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from selfplay_ray.runlog.json_lines import read_json_lines, read_last_row
from selfplay_ray.types import FinishReason, GenerateResult, Message, PolicySpan, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One ``Step``: what a role saw and said, what it was worth (None if it is unscored), and which policies said it.

    Token ids and logprobs are there only if the log was asked to keep them; they are most of a rollout's bytes.
    """

    role_id: str
    index: int
    prompt: tuple[Message, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    spans: tuple[PolicySpan, ...]
    temperature: float
    trainable: bool
    reward: float | None
    advantage: float | None
    info: Any
    prompt_token_ids: tuple[int, ...] | None = None
    completion_token_ids: tuple[int, ...] | None = None
    completion_logprobs: tuple[float | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One ``GenerateResult``: its rollout, and those of the episodes it spawned.

    What an episode left in ``artifact``, ``meta``, ``extras`` and ``info`` is JSON as far as it can be, and the
    ``repr`` of whatever can't. A number that isn't finite is None.
    """

    id: str
    episode_type: str
    group: str | None
    is_trainable: bool
    artifact: Any
    meta: Any
    extras: Any
    rewards: dict[str, float | None]
    advantages: dict[str, float | None]
    metrics: dict[str, float | None]
    started_at: float
    ended_at: float
    truncated: bool
    error: str | None
    steps: tuple[StepRow, ...]
    children: tuple[RolloutRow, ...]
    unscored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """A line of ``rollouts.jsonl``: one root's tree, and the batch it was generated in; for one of an evaluation,
    which no training sees, the policy version that is evaluated."""

    batch: int
    tree: RolloutRow
    evaluation: bool = False


def encode_tree(batch: int, result: GenerateResult, *, tokens: bool, evaluation: bool = False) -> bytes:
    """The line for one tree, without its end."""
    return msgspec.json.encode(TreeRow(batch=batch, tree=_rollout_row(result, tokens), evaluation=evaluation))


def read_rollouts(path: Path) -> Iterator[TreeRow]:
    """The trees of ``rollouts.jsonl`` in the order they were written, each once.

    A run that crashed and was resumed may have played again what it had written but not yet put into its journal:
    what it wrote last is what it trained on.

    Raises:
        RunLogError: the file can't be read; a last line that a crash tore is left out.
    """
    newest = {_name(row): line for line, row in enumerate(read_json_lines(path, _NamedRow))}
    for line, row in enumerate(read_json_lines(path, TreeRow)):
        if newest.get(_name(row), line) == line:
            yield row


def read_last_rollouts(path: Path) -> TreeRow | None:
    """The tree written last; None while there is none. What is before it isn't read.

    Raises:
        RunLogError: the file can't be read.
    """
    return read_last_row(path, TreeRow)


def _rollout_row(result: GenerateResult, tokens: bool) -> RolloutRow:
    rollout = result.rollout
    return RolloutRow(
        id=rollout.id,
        episode_type=rollout.episode_type,
        group=result.group,
        is_trainable=result.is_trainable,
        artifact=_json(rollout.artifact),
        meta=_json(rollout.meta),
        extras=_json(rollout.extras),
        rewards=dict(rollout.rewards),
        advantages=dict(rollout.advantages),
        metrics=dict(rollout.metrics),
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        truncated=rollout.truncated,
        error=None if rollout.error is None else _text(rollout.error),
        steps=tuple(_step_row(step, tokens, step.role_id not in rollout.unscored) for step in rollout.steps),
        children=tuple(_rollout_row(child, tokens) for child in result.children),
        unscored=tuple(rollout.unscored),
    )


def _step_row(step: Step, tokens: bool, scored: bool) -> StepRow:
    response = step.response
    return StepRow(
        role_id=step.role_id,
        index=step.index,
        prompt=tuple(Message(role=m["role"], content=_text(m["content"])) for m in step.prompt),
        text=_text(response.text),
        finish_reason=response.finish_reason,
        prompt_tokens=len(response.prompt_token_ids),
        completion_tokens=len(response.completion_token_ids),
        spans=response.spans,
        temperature=step.temperature,
        trainable=step.trainable,
        reward=step.reward if scored else None,
        advantage=step.advantage if scored else None,
        info=_json(step.info),
        prompt_token_ids=response.prompt_token_ids if tokens else None,
        completion_token_ids=response.completion_token_ids if tokens else None,
        completion_logprobs=response.completion_logprobs if tokens else None,
    )


def _json(value: object) -> msgspec.Raw:
    """Any value as JSON; what contains itself, or text that is no Unicode, as its ``repr`` as a whole."""
    try:
        return msgspec.Raw(msgspec.json.encode(value, enc_hook=repr))
    except (UnicodeEncodeError, RecursionError):
        return msgspec.Raw(msgspec.json.encode(_text(repr(value))))


def _text(text: str) -> str:
    """Half of a surrogate pair, which JSON written by a model may hold, becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


class _NamedTree(msgspec.Struct, frozen=True):
    id: str


class _NamedRow(msgspec.Struct, frozen=True):
    """What names a line's tree, which is quickly read."""

    batch: int
    tree: _NamedTree
    evaluation: bool = False


def _name(row: TreeRow | _NamedRow) -> tuple[int, bool, str]:
    return row.batch, row.evaluation, row.tree.id
