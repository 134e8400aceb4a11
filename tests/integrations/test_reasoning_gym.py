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
