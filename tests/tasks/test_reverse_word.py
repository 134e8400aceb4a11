"""Spelling backwards: every reward by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.config import RunConfig
from selfplay_ray.tasks.reverse_word import ReverseWordArena, in_place, reversal_reward, spelled
from selfplay_ray.testing import MockInferenceClient
from selfplay_ray.types import Completion, EpisodeRequest, Message, PolicySpan, Rollout, Step


def rewarded(text: str, word: str) -> float:
    said = Completion(text, (1,), (2,), (-1.0,), (PolicySpan(0, 1, 0),), "stop")
    rollout = Rollout("b0.0", "reverse", word, steps=[Step("Speller", 0, [], said, 1.0)])
    return reversal_reward(rollout, ReverseWordArena(8))["Speller"]


@pytest.mark.parametrize(
    ("said", "wanted", "share"),
    [
        ("tac", "tac", 1.0),
        ("tab", "tac", 2 / 3),
        ("cat", "tac", 1 / 3),
        ("tacs", "tac", 3 / 4),  # one too many
        ("ta", "tac", 2 / 3),  # one too few
        ("stac", "tac", 0.0),  # none where it should be
        ("", "tac", 0.0),
    ],
)
def test_letters_count_where_they_stand(said: str, wanted: str, share: float):
    assert in_place(said, wanted) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        # "rek" backwards is "k e r": 0.2 for letters alone, 0.5 × the share in place, 0.3 for all of it
        ("k e r", 1.0),
        (" K e R\n", 1.0),
        ("ker", 0.5),  # the right letters, but not one by one
        ("k e r.", 0.5),
        ("k e n", 0.2 + 0.5 * 2 / 3),
        ("r e k", 0.2 + 0.5 / 3),  # as it was given
        ("k e r e", 0.2 + 0.5 * 3 / 4),
        ("e", 0.2),
        ("k is it", 0.5 / 5),  # "kisit": 1 of 5 letters
        ("42!", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_graded(text: str, reward: float):
    assert rewarded(text, "rek") == pytest.approx(reward)


@given(st.text(alphabet="abc xyz.", max_size=12), st.text(alphabet="abcxyz", min_size=3, max_size=3))
def test_only_an_exact_answer_is_worth_1(text: str, word: str):
    reward = rewarded(text, word)
    assert 0 <= reward <= 1
    assert (reward == pytest.approx(1)) == (text.strip() == spelled(word[::-1]))


async def test_it_is_shown_two_words_as_a_conversation():
    asked: list[Sequence[Message]] = []

    def reply(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "k e r"

    arena = ReverseWordArena(8, client=MockInferenceClient(reply))
    result = await arena.run_episode("reverse", "rek")
    assert result.rewards == {"Speller": pytest.approx(1.0)}
    assert [message["role"] for message in asked[0]] == ["user", "assistant"] * 2 + ["user"]
    assert asked[0][1]["content"] == "p a g"
    assert asked[0][-1]["content"] == "Spell backwards: r e k"


def batch(seed: int, size: int = 20) -> list[EpisodeRequest]:
    arena = ReverseWordArena(size, group_size=8)
    arena.configure(RunConfig(seed=seed, batch_size=size))
    return arena.next_batch()


def test_answers_to_a_word_are_a_group_and_words_come_from_the_seed():
    first = batch(0)
    assert first == batch(0)
    assert first != batch(1)
    assert [request.artifact for request in first[:8]] == [first[0].artifact] * 8
    assert [len({r.group for r in first[a:b]}) for a, b in ((0, 8), (8, 16), (16, 20))] == [1, 1, 1]
    assert len({request.group for request in first}) == 3
    assert all(len(request.artifact) == 3 and request.artifact.isalpha() for request in first)
