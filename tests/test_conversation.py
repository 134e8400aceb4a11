"""Who has heard what, message by message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.conversation import Conversations, with_examples
from selfplay_ray.errors import UnknownNameError
from selfplay_ray.types import Message, Role


def heard(speaker: str, text: str, listener: str) -> str:
    return f"{speaker}: {text}"


def conversations(**system_prompts: str) -> Conversations:
    return Conversations({name: Role(name, prompt) for name, prompt in system_prompts.items()}, heard)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def test_a_role_hears_what_is_new_to_it_in_order_and_its_observation_last():
    talk = conversations(A="be A", B="")
    talk.announce("the rules")
    assert talk.messages_for("A", "you hold 7") == [
        {"role": "system", "content": "be A"},
        user("the rules\n\nyou hold 7"),
    ]
    talk.said("A", "hello")
    talk.announce("A was polite")
    assert talk.messages_for("B") == [user("the rules\n\nA: hello\n\nA was polite")]
    talk.said("B", "hi")
    assert talk.messages_for("A", "you hold 8") == [
        {"role": "system", "content": "be A"},
        user("the rules\n\nyou hold 7"),
        assistant("hello"),
        user("A was polite\n\nB: hi\n\nyou hold 8"),
    ]


def test_what_is_heard_as_nothing_leaves_no_gap():
    talk = Conversations({name: Role(name) for name in "AB"}, lambda speaker, text, listener: "")
    talk.messages_for("A", "your move")
    talk.said("A", "a thought, and a move")
    assert talk.messages_for("B", "A has moved") == [user("A has moved")]


def test_a_role_that_speaks_twice_does_not_hear_itself():
    talk = conversations(A="")
    talk.announce("start")
    talk.messages_for("A")
    talk.said("A", "one")
    talk.announce("go on")
    assert talk.messages_for("A") == [user("start"), assistant("one"), user("go on")]


def test_roles_that_speak_at_the_same_time_hear_each_other_afterwards():
    talk = conversations(A="", B="")
    talk.announce("reveal your bids")
    talk.messages_for("A")
    talk.messages_for("B")
    talk.said("A", "3")
    talk.said("B", "5")
    assert talk.messages_for("A")[-1] == user("B: 5")
    assert talk.messages_for("B")[-1] == user("A: 3")


def test_an_empty_announcement_is_none():
    talk = conversations(A="")
    talk.announce("")
    talk.announce("x")
    assert talk.messages_for("A") == [user("x")]


def test_what_was_handed_out_is_not_changed_later():
    talk = conversations(A="")
    talk.announce("x")
    first = talk.messages_for("A")
    talk.said("A", "y")
    talk.messages_for("A")
    assert first == [user("x")]


def test_an_unknown_role_is_named_with_those_that_are_known():
    with pytest.raises(UnknownNameError, match="unknown role 'C'; known: A, B"):
        conversations(A="", B="").messages_for("C")


turns = st.lists(
    st.tuples(st.sampled_from("ABC"), st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)),
    max_size=12,
)


@given(turns)
def test_views_only_grow_alternate_and_keep_secrets(script):
    """For any order of speakers, replies, announcements and observations."""
    talk = conversations(A="sys", B="", C="sys")
    views: dict[str, list[Message]] = {}
    for index, (role, reply, announcement, observation) in enumerate(script):
        view = talk.messages_for(role, f"<secret {role}{index} {observation}>")
        before = views.get(role, [])
        assert view[: len(before)] == before
        assert len(view) == max(len(before), view[0]["role"] == "system") + 1
        shown = "".join(message["content"] for message in view)
        assert all(f"<secret {other}" not in shown for other in "ABC" if other != role)
        talk.said(role, reply)
        views[role] = [*view, assistant(reply)]
        talk.announce(announcement)
    for view in views.values():
        spoken = [message["role"] for message in view if message["role"] != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)


@given(turns)
def test_everything_said_reaches_every_other_role_exactly_once(script):
    talk = conversations(A="", B="", C="")
    expected = dict.fromkeys("ABC", 0)
    for index, (role, *_) in enumerate(script):
        talk.messages_for(role)
        talk.said(role, f"[utterance {index}]")
        for other in set("ABC") - {role}:
            expected[other] += 1
    for role, count in expected.items():
        told = "".join(m["content"] for m in talk.messages_for(role) if m["role"] == "user")
        assert told.count("[utterance") == count


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "add"}]])
def test_one_question_comes_after_examples_and_both_after_a_system_prompt(system):
    shown = [("2 + 2", "4"), ("1 + 2", "3")]
    turns = [user("2 + 2"), assistant("4"), user("1 + 2"), assistant("3"), user("3 + 4")]
    assert with_examples([*system, user("3 + 4")], shown) == [*system, *turns]
    assert with_examples("3 + 4", shown) == turns
    assert with_examples("3 + 4", ()) == [user("3 + 4")]


def test_examples_stand_between_the_system_prompt_and_a_roles_own_turns():
    shown = {"A": [("2 + 2", "4")], "B": []}
    talk = Conversations({"A": Role("A", "add"), "B": Role("B")}, heard, shown.__getitem__)
    talk.announce("3 + 4")
    assert talk.messages_for("A") == [
        {"role": "system", "content": "add"},
        user("2 + 2"),
        assistant("4"),
        user("3 + 4"),
    ]
    talk.said("A", "7")
    assert talk.messages_for("B") == [user("3 + 4\n\nA: 7")]
