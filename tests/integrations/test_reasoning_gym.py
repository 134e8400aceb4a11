"""reasoning-gym's puzzles: the same wherever they are made, and scored by their own verifiers."""

from __future__ import annotations

import random
import sys

import pytest

from selfplay_ray.errors import ConfigError
from selfplay_ray.integrations.reasoning_gym import ReasoningGym
from selfplay_ray.problems import problems_from


@pytest.fixture
def installed() -> None:
    pytest.importorskip("reasoning_gym")


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'selfplay-ray\[reasoning-gym\]'"):
        ReasoningGym.make("chain_sum", 5, {"min_terms": 7})


@pytest.mark.usefixtures("installed")
def test_puzzles_are_the_same_each_time_and_draw_from_no_global_chance():
    state = random.getstate()
    gym = ReasoningGym.make("chain_sum", 5, {"min_terms": 2, "max_terms": 2})
    problems = problems_from(gym.rows())
    assert random.getstate() == state
    assert len(problems) == 5
    again = ReasoningGym.make("chain_sum", 5, {"min_terms": 2, "max_terms": 2, "seed": 0})
    assert problems_from(again.rows()) == problems
    assert problems_from(ReasoningGym.make("chain_sum", 5, {"seed": 1}).rows()) != problems


@pytest.mark.usefixtures("installed")
def test_a_reply_is_scored_by_the_verifier_of_its_kind():
    gym = ReasoningGym.make("chain_sum", 5, {})
    problem = problems_from(gym.rows())[3]
    assert gym(problem["answer"], problem) == 1
    assert gym(f"<answer>{problem['answer']}</answer> is it", problem) == 1
    assert gym("no idea", problem) < 0.1
    assert gym("", problem) < 0.1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", ["list_functions", "prime_factorization", "game_of_life"])
def test_kinds_with_ways_of_their_own(kind: str):
    """The first draws from the global random state; the others' verifiers raise for what they can't read."""
    state = random.getstate()
    gym = ReasoningGym.make(kind, 3, {})
    problems = problems_from(gym.rows())
    assert problems_from(gym.rows()) == problems
    for reply in ("", "no idea", "{}", "7", "-1/0", "[[1,2],[3"):
        assert 0 <= gym(reply, problems[0]) < 0.5
    assert gym(problems[1]["answer"], problems[1]) == 1
    assert random.getstate() == state


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("chain_sun", {}, r"reasoning-gym has no 'chain_sun'; did you mean chain_sum\?"),
        ("chain_sum", {"min_term": 2}, "chain_sum can't be made with the options .*min_term"),
        ("chain_sum", {"min_terms": 0}, "chain_sum can't be made with the options"),
        ("rubiks_cube", {}, "rubiks_cube gives no answer that its own verifier accepts"),
    ],
)
def test_what_cannot_be_asked_is_refused(kind: str, options: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        ReasoningGym.make(kind, 3, options)
