"""What agents said, as text for a terminal: nothing a model writes can style it, move in it, or pose as ours."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from selfplay_ray.runlog.plain_text import one_line, plain_text
from selfplay_ray.runlog.rollouts import RolloutRow, StepRow

MAX_STEPS = 12
MAX_CHARACTERS = 600
MIN_TEXT_WIDTH = 20
INDENT = "    "
MAX_INDENTS = 4


def transcript(tree: RolloutRow, width: int, depth: int = 0) -> Iterator[str]:
    """The lines of one rollout and of the first of its children, and theirs: one path down the tree.

    Every line of a model's own begins with a bar, so that it can't pass for one of ours; it is wrapped to
    ``width`` columns here, because a line that the terminal wraps has none.
    """
    indent = INDENT * min(depth, MAX_INDENTS)
    yield f"{indent}{_heading(tree)}"
    if tree.steps:
        yield from _said("asked", _last_question(tree.steps[0]), indent, width)
    for step in tree.steps[:MAX_STEPS]:
        yield from _said(step.role_id, step.text, indent, width)
    if len(tree.steps) > MAX_STEPS:
        yield f"{indent}  and {len(tree.steps) - MAX_STEPS} more turns"
    if tree.error is not None:
        yield from _said("failed", _last_line(tree.error), indent, width)
    for child in tree.children[:1]:
        yield from transcript(child, width, depth + 1)
    if len(tree.children) > 1:
        yield f"{indent}{INDENT}and {len(tree.children) - 1} more below {one_line(tree.id)}"


def _heading(row: RolloutRow) -> str:
    rewards = "".join(f"  {one_line(role)} {_number(reward)}" for role, reward in row.rewards.items())
    unscored = "".join(f"  {one_line(role)} unscored" for role in row.unscored)
    cut = "  (cut off at its turn limit)" if row.truncated else ""
    return f"{one_line(row.episode_type)} {one_line(row.id)}{rewards}{unscored}{cut}"


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"


def _last_question(step: StepRow) -> str:
    return step.prompt[-1]["content"] if step.prompt else ""


def _last_line(text: str) -> str:
    lines = [line for line in plain_text(text).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"


def _said(who: str, text: str, indent: str, width: int) -> Iterator[str]:
    shown = plain_text(text).strip("\n")
    rest = len(shown) - MAX_CHARACTERS
    if rest > 0:
        shown = f"{shown[:MAX_CHARACTERS]} ... {rest} characters more"
    label = f"{indent}  {one_line(who)}"
    for line in _wrapped(shown, max(MIN_TEXT_WIDTH, width - cell_len(label) - 3)):
        yield f"{label} | {line}"
        label = " " * cell_len(label)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most ``width`` columns, broken between words where there are any."""
    console = Console(width=width)
    for line in text.split("\n"):
        for piece in Text(line).wrap(console, width) or [Text()]:  # counts letters two columns wide as two
            yield piece.plain.rstrip()
