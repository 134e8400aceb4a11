"""What a model said reaches the terminal as text, and stays behind its bar."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from selfplay_ray.runlog.plain_text import one_line, plain_text
from selfplay_ray.runlog.rollouts import RolloutRow, StepRow
from selfplay_ray.runlog.transcript import transcript
from selfplay_ray.types import Message, PolicySpan


def said(text: str, role: str = "Solver", question: str = "2 + 3?") -> StepRow:
    return StepRow(
        role_id=role,
        index=0,
        prompt=(Message(role="system", content="Be brief."), Message(role="user", content=question)),
        text=text,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=1,
        spans=(PolicySpan(0, 1, 0),),
        temperature=1.0,
        trainable=True,
        reward=0.0,
        advantage=0.0,
        info={},
    )


def rollout(rollout_id: str, *steps: StepRow, **fields: Any) -> RolloutRow:
    defaults: dict[str, Any] = {
        "episode_type": "solve",
        "group": None,
        "is_trainable": True,
        "artifact": None,
        "meta": {},
        "extras": {},
        "rewards": {},
        "advantages": {},
        "metrics": {},
        "started_at": 0.0,
        "ended_at": 0.0,
        "truncated": False,
        "error": None,
        "children": (),
    }
    return RolloutRow(id=rollout_id, steps=steps, **(defaults | fields))


def test_escape_sequences_and_controls_are_gone() -> None:
    text = "a\x1b[31mred\x1b]0;title\x07\x9b2J\x08\x7f\x00b\tc\r\nd\re"
    assert plain_text(text) == "a[31mred]0;title2Jb    c\nd\ne"


def test_text_that_reverses_hides_or_breaks_lines_unseen_is_gone() -> None:
    assert plain_text("abc\u202edef\u2066g\u200bh\u2028i\ud800j") == "abcdefghij"


@given(st.text())
def test_no_text_keeps_a_character_a_terminal_obeys(text: str) -> None:
    shown = plain_text(text)
    controls = {*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    assert not any(ord(c) in controls - {ord("\n")} or 0xD800 <= ord(c) < 0xE000 for c in shown)
    assert "\n" not in one_line(text)


def test_markup_and_ordinary_languages_are_untouched() -> None:
    text = "[bold]x[/bold] :smile: <b> naïve 我认为 é"
    assert plain_text(text) == text


def test_a_tree_shows_each_level_once_and_counts_the_rest() -> None:
    children = tuple(rollout(f"4/0/{i}", said(f"answer {i}"), rewards={"Solver": 1.0}) for i in range(3))
    tree = rollout(
        "4",
        said("What is 2 + 3?", "Proposer", "Ask something."),
        episode_type="propose",
        rewards={"Proposer": 0.5},
        children=children,
    )
    assert list(transcript(tree, 80)) == [
        "propose 4  Proposer 0.50",
        "  asked | Ask something.",
        "  Proposer | What is 2 + 3?",
        "    solve 4/0/0  Solver 1.00",
        "      asked | 2 + 3?",
        "      Solver | answer 0",
        "    and 2 more below 4",
    ]


def test_a_failed_rollout_says_why_in_one_line_and_a_cut_off_one_that_it_was() -> None:
    failed = rollout("4", error="Traceback (most recent call last):\n  ...\nValueError: no \x1b[31mboard\n")
    assert list(transcript(failed, 80)) == ["solve 4", "  failed | ValueError: no [31mboard"]
    assert next(transcript(rollout("4", truncated=True), 80)) == "solve 4  (cut off at its turn limit)"


def test_who_is_unscored_is_said_to_be() -> None:
    debate = rollout("4", rewards={"Critic": 1.0}, unscored=("Pro", "C\x1b[31mon"))
    assert next(transcript(debate, 80)) == "solve 4  Critic 1.00  Pro unscored  C[31mon unscored"


def test_long_conversations_and_long_speeches_are_cut() -> None:
    lines = list(transcript(rollout("4", *[said("x" * 700)] * 15), 2000))
    assert sum(line.startswith("  Solver | ") for line in lines) == 12
    assert lines[-1] == "  and 3 more turns"
    assert lines[-2] == "  Solver | " + "x" * 600 + " ... 100 characters more"


def test_letters_two_columns_wide_are_counted_as_two() -> None:
    lines = list(transcript(rollout("4", said("我" * 40)), 40))[2:]
    # "  Solver | " takes 11 columns; 29 are left for 14 letters a line: 14 + 14 + 12.
    assert [line.count("我") for line in lines] == [14, 14, 12]


@given(st.text(), st.integers(40, 100), st.text(max_size=12))
def test_every_line_a_model_wrote_has_a_bar_and_fits(text: str, width: int, role: str) -> None:
    lines = list(transcript(rollout("4", said(text, role)), width))
    assert lines[:2] == ["solve 4", "  asked | 2 + 3?"]
    assert len(lines) > 2
    for line in lines[2:]:
        assert " | " in line
        assert "\n" not in line
        assert cell_len(line) <= width
